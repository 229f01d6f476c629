"""What tidying up needs of an object store besides reading and writing: listings with size and time, many deletes."""

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
    """An upload in parts whose end has not come; its parts take room that no listing shows."""

    key: str
    upload: str
    started: datetime


class ObjectInventory(ObjectWriter, Protocol):
    """A store that can be tidied up."""

    def scan(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key starts with the prefix, page by page, in no promised order."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Deletes objects; missing ones are no error."""

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads in parts below the prefix that have neither ended nor been given up."""

    def give_up_upload(self, upload: UnfinishedUpload) -> None:
        """Frees the parts of an upload; one that has ended meanwhile is no error."""
