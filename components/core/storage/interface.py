"""What the core needs of an object store, without naming a client library. Keys are relative to the store's prefix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class ObjectReader(Protocol):
    """Reads whole objects."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises MissingObjectError where there is none."""

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The objects' bytes in the order of the keys, with many requests in flight."""


class ObjectWriter(ObjectReader, Protocol):
    """Reads, writes, lists and deletes whole objects."""

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
        """The object's address, s3://bucket/key."""


class MissingObjectError(KeyError):
    """There is no object at this key."""
