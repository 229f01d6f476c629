"""Counts the requests that normalize makes, whatever the store behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from components.core.storage.interface import ObjectWriter


class CountedWriter:
    """An ObjectWriter that counts the objects read and written through it.

    Attributes:
        requests: gets and puts so far.
    """

    def __init__(self, store: ObjectWriter) -> None:
        self._store = store
        self.requests = 0
        self._counting = threading.Lock()

    def __reduce__(self) -> tuple[Callable[[ObjectWriter], ObjectWriter], tuple[ObjectWriter]]:
        # What another process writes is added here when it tells of it.
        return _as_it_is, (self._store,)

    def add(self, requests: int) -> None:
        """Counts requests that another process made."""
        with self._counting:
            self.requests += requests

    def get(self, key: str) -> bytes:
        """See ObjectReader.get."""
        self.add(1)
        return self._store.get(key)

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """See ObjectReader.get_many."""
        self.add(len(keys))
        return self._store.get_many(keys)

    def put(self, key: str, data: bytes) -> None:
        """See ObjectWriter.put."""
        self.add(1)
        self._store.put(key, data)

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """See ObjectWriter.put_many."""

        def counted() -> Iterator[tuple[str, bytes]]:
            for item in items:
                self.add(1)
                yield item

        self._store.put_many(counted())

    def exists(self, key: str) -> bool:
        """See ObjectWriter.exists."""
        self.add(1)
        return self._store.exists(key)

    def list(self, prefix: str) -> Sequence[str]:
        """See ObjectWriter.list."""
        self.add(1)
        return self._store.list(prefix)

    def delete_prefix(self, prefix: str) -> int:
        """See ObjectWriter.delete_prefix."""
        self.add(1)
        return self._store.delete_prefix(prefix)

    def uri(self, key: str) -> str:
        """See ObjectWriter.uri."""
        return self._store.uri(key)


def _as_it_is(store: ObjectWriter) -> ObjectWriter:
    return store
