"""What tidying up needs of a bucket or folder besides reading and writing: listings with size and time, many deletes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from components.core.storage.interface import ObjectWriter


class StoredObject(NamedTuple):
    """What a listing says of an object; its time is the server's."""

    key: str
    size: int
    modified: datetime


class UnfinishedUpload(NamedTuple):
    """An object that is not whole yet, or never will be; what there is of it takes room that no listing shows."""

    key: str
    upload: str
    started: datetime
    size: int = 0  # bytes, where the listing tells


class ObjectInventory(ObjectWriter, Protocol):
    """A store that can be tidied up.

    Attributes:
        requests: made so far, by kind; "lists" are those of listings.
    """

    requests: dict[str, int]

    def scan(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key starts with the prefix, a part of them at a time, in no promised order."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Deletes objects; missing ones are no error."""

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads below the prefix that have neither ended nor been given up."""

    def give_up_upload(self, upload: UnfinishedUpload) -> None:
        """Frees what there is of an upload; one that has ended meanwhile is no error."""
