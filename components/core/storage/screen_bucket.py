"""A screen in a bucket, read in place: its tables and images are objects below a prefix."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.errors import InputError
from components.core.screen.screen_source import FileFacts, UnreadableError
from components.core.storage.interface import MissingObjectError
from components.core.storage.listing import list_in_parts
from components.core.storage.object_store import ObjectStore

_NONE = "no such object"


class ScreenBucket:
    """A ScreenSource below a prefix of a bucket, at the endpoint that the AWS environment variables name."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def check(self) -> None:
        """See ScreenSource.check; also where the store cannot be used."""
        self._store.check(instead="correct the address of the screen")
        if not self._store.list_folder(""):
            raise InputError(
                f"{self.address()}: holds no file; give the address of the folder that holds train.csv or metadata.csv"
            )

    def address(self, path: str = "") -> str:
        """See ScreenSource.address."""
        return self._store.uri(path)

    def list_files(self, folder: str = "") -> Sequence[FileFacts]:
        """See ScreenSource.list_files."""
        found = self._store.list_folder(f"{folder}/" if folder else "")
        if not found:  # a bucket has no folders, only names that begin alike
            raise UnreadableError(folder, "no object lies there")
        return [FileFacts(*facts) for facts in found]

    def list_trees(self, folders: Sequence[str]) -> Sequence[FileFacts]:
        """See ScreenSource.list_trees."""
        return [FileFacts(*facts) for facts in list_in_parts(self._store, folders)]

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """See ScreenSource.read_many."""
        try:
            return self._store.get_many(paths)
        except MissingObjectError as missing:
            uri = missing.args[0]
            raise UnreadableError(next(path for path in paths if self.address(path) == uri), _NONE) from None
