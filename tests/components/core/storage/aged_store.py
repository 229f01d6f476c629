"""A real store whose objects are older than they are, and one that is cut short. For tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from components.core.errors import StepError
from components.core.storage.inventory import ObjectInventory, StoredObject, UnfinishedUpload


class AgedStore:
    """An ObjectInventory over a store in which everything there now is days old, and all that comes is young.

    Attributes:
        deletes: requests that may still delete; None for any number.
    """

    def __init__(self, store: ObjectInventory, days: float = 10) -> None:
        self._store, self._age = store, timedelta(days=days)
        self.requests = store.requests
        self.deletes: int | None = None
        self._old: dict[str, StoredObject] = {}
        self.grow_old()

    def grow_old(self) -> None:
        """Everything that is there now becomes old."""
        self._old = {found.key: found for found in self._store.scan("")}

    def touch(self, key: str) -> None:
        """One object becomes young."""
        del self._old[key]

    def scan(self, prefix: str) -> Iterator[StoredObject]:
        for found in self._store.scan(prefix):
            old = self._old.get(found.key) == found
            yield found._replace(modified=found.modified - self._age) if old else found

    def delete_many(self, keys: Sequence[str]) -> None:
        if self.deletes is not None:
            if not self.deletes:
                raise StepError("killed")
            self.deletes -= 1
        self._store.delete_many(keys)

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        for found in self._store.unfinished_uploads(prefix):
            yield found._replace(started=found.started - self._age)

    def give_up_upload(self, upload: UnfinishedUpload) -> None:
        self._store.give_up_upload(upload)

    def get(self, key: str) -> bytes:
        return self._store.get(key)

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return self._store.get_many(keys)

    def put(self, key: str, data: bytes) -> None:
        self._old.pop(key, None)
        self._store.put(key, data)

    def put_many(self, items: object) -> None:
        raise NotImplementedError

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def list(self, prefix: str) -> Sequence[str]:
        return self._store.list(prefix)

    def delete_prefix(self, prefix: str) -> int:
        return self._store.delete_prefix(prefix)

    def uri(self, key: str) -> str:
        return self._store.uri(key)
