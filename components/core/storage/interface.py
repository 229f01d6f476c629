"""What the core needs of an object store, without naming a client library. Keys are relative to the store's prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


class StoredObject(NamedTuple):
    """An object in a listing; its time is the server's."""

    key: str
    size: int
    modified: datetime


class ObjectReader(Protocol):
    """Reads whole objects."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises MissingObjectError where there is none."""

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The objects' bytes in the order of the keys, with many requests in flight."""


@runtime_checkable
class FileReader(Protocol):
    """A store whose objects are files here."""

    def local_path(self, key: str) -> Path:
        """The file that holds the object, whether or not it is there."""


@runtime_checkable
class BufferReader(Protocol):
    """A store that gives out what it received as it is."""

    def view(self, key: str) -> memoryview:
        """The object's bytes, not copied. Raises MissingObjectError where there is none."""


class ObjectWriter(ObjectReader, Protocol):
    """Reads, writes, lists and deletes whole objects.

    Pickled, it is an address: what another process makes of it reaches the same objects. One that has none cannot be pickled.
    """

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole, replacing an earlier one."""

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Writes objects with many requests in flight; returns when all are acknowledged."""

    def exists(self, key: str) -> bool:
        """Whether there is an object at the key."""

    def list(self, prefix: str) -> Sequence[str]:
        """All keys that start with the prefix, sorted."""

    def delete_prefix(self, prefix: str) -> int:
        """Deletes every object whose key starts with the prefix; returns how many."""

    def uri(self, key: str) -> str:
        """The object's address, s3://bucket/key or file:///folder/key."""


class ObjectStorage(ObjectWriter, Protocol):
    """All that a step needs: files of any size and conditional writes besides."""

    requests: dict[str, int]

    def check(self) -> None:
        """Raises InputError where the store cannot be used."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the object only where there is none; of several writers one gets True."""

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and the version that they are of. Raises MissingObjectError where there is none."""

    def put_if_version(self, key: str, data: bytes, version: str) -> bool:
        """Replaces the object only where it is still of this version; of several writers one gets True."""

    def delete(self, key: str) -> None:
        """Deletes one object; a missing one is no error."""

    def scan(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key starts with the prefix, read page by page, in no promised order."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Deletes objects; missing ones are no error."""

    def upload_file(self, path: Path, key: str) -> None:
        """Writes a file of any size; the object appears whole."""

    def download_file(self, key: str, path: Path) -> None:
        """Reads an object of any size into a file, which appears whole or not at all."""


class MissingObjectError(KeyError):
    """There is no object at this key."""
