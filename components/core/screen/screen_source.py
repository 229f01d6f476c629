"""The files of a screen, in a directory or as objects of a bucket. Paths are relative to the screen, with forward slashes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from components.core.errors import InputError, MissingObjectError

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

LISTINGS = 12
"""Folders of a bucket that are listed in parallel; the pages of one listing come one after the other."""


_CLUTTER = re.compile(
    r"(?i)(?:^|/)(?:\.(?!z(?:attrs|group|array|metadata)$)[^/]*|@eaDir|__MACOSX|#recycle|#snapshot|\$RECYCLE\.BIN|"
    r"System Volume Information|lost\+found|thumb(?:s|nails?)|Thumbs\.db)(?:/|$)"
)
"""What operating systems, file servers and viewers put among a screen's files: `._x.tif`, `.snapshot`, `@eaDir`, `thumbs`."""


class FileFacts(NamedTuple):
    """An entry of a listing."""

    name: str  # without its folder; its path in list_trees
    size: int  # bytes
    version: str  # changes when the file is written again: its modification time, or its ETag


def _is_clutter(path: str) -> bool:
    """Whether a file or folder is none of the screen's."""
    return _CLUTTER.search(path) is not None


class UnreadableError(Exception):
    """A file or folder (`path`) of the screen cannot be read, and why (`reason`); the caller adds its purpose."""

    def __init__(self, path: str, reason: str, missing: bool = False) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.missing = missing  # there is no such file


class ScreenSource(Protocol):
    """A screen's files; thread-safe. Errors that concern no single file (credentials, network) pass through."""

    def check(self) -> None:
        """Raises InputError if there is nothing to read."""

    def address(self, path: str = "") -> str:
        """The address of a file, or of the screen, for messages."""

    def list_files(self, folder: str = "") -> Sequence[FileFacts]:
        """The files directly in a folder. Raises UnreadableError if there is no folder."""

    def list_folders(self, folder: str = "") -> Sequence[str]:
        """The names of the folders directly in a folder; none without it."""

    def list_trees(self, folders: Sequence[str]) -> Sequence[FileFacts]:
        """The files of some folders and of all folders below them, named by their paths; a missing folder has none."""

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """The files' bytes in the order of the paths. Raises UnreadableError for the first that cannot be read."""


def files_in(source: ScreenSource, folder: str) -> Sequence[FileFacts]:
    """The files directly in a folder; none without it."""
    try:
        return source.list_files(folder)
    except UnreadableError:
        return []


class ScreenDirectory:
    """A screen in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"

    def check(self) -> None:
        """See ScreenSource.check."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such directory; give the directory that holds train.csv or metadata.csv")

    def address(self, path: str = "") -> str:
        """See ScreenSource.address."""
        if not path:
            return str(self.root)
        return path if path.startswith("/") else f"{self._prefix}{path}"

    def list_files(self, folder: str = "") -> Sequence[FileFacts]:
        """See ScreenSource.list_files."""
        try:
            with os.scandir(self.root / folder) as entries:
                found = [
                    (entry.name, entry.stat()) for entry in entries if not (_is_clutter(entry.name) or entry.is_dir())
                ]
        except OSError as error:
            raise UnreadableError(folder, error.strerror or "cannot be listed") from None
        return [FileFacts(name, facts.st_size, str(facts.st_mtime_ns)) for name, facts in found]

    def list_folders(self, folder: str = "") -> Sequence[str]:
        """See ScreenSource.list_folders."""
        try:
            with os.scandir(self.root / folder) as entries:
                return [entry.name for entry in entries if entry.is_dir() and not _is_clutter(entry.name)]
        except OSError:
            return []

    def list_trees(self, folders: Sequence[str]) -> Sequence[FileFacts]:
        """See ScreenSource.list_trees."""
        found: list[FileFacts] = []
        waiting = [*folders]
        while waiting:
            inside = waiting.pop()
            try:
                with os.scandir(self.root / inside) as entries:
                    for entry in entries:
                        if _is_clutter(entry.name):
                            continue
                        path = f"{inside}/{entry.name}" if inside else entry.name
                        if entry.is_dir():
                            waiting.append(path)
                            continue
                        # A dangling link, or a file removed since its name was read.
                        with contextlib.suppress(FileNotFoundError):
                            facts = entry.stat()
                            found.append(FileFacts(path, facts.st_size, str(facts.st_mtime_ns)))
            except FileNotFoundError:
                continue  # a missing folder, or one removed since its name was read
            except OSError as error:
                raise InputError(f"{self.root / inside}: cannot be listed ({error.strerror})") from None
        return found

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """See ScreenSource.read_many."""
        return [self._read(path) for path in paths]

    def _read(self, path: str) -> bytes:
        try:
            # A file object makes twice as many system calls; a plate has thousands of small files.
            # O_NONBLOCK: a named pipe reads as empty instead of waiting for a writer.
            file = os.open(
                path if path.startswith("/") else f"{self._prefix}{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            )
            try:
                left = os.fstat(file).st_size
                parts = [os.read(file, left)]
                while (
                    parts[-1] and (left := left - len(parts[-1])) > 0
                ):  # a network file system may return less at once
                    parts.append(os.read(file, left))
            finally:
                os.close(file)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            raise UnreadableError(path, error.strerror or "cannot be read", missing) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)


class ScreenBucket:
    """A screen below a prefix of a bucket."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def check(self) -> None:
        """See ScreenSource.check; also if the store cannot be used."""
        self._store.check()
        if not any(self._store.list_level("")):
            raise InputError(
                f"{self.address()}: holds no file; give the address of the folder that holds train.csv or metadata.csv"
            )

    def address(self, path: str = "") -> str:
        """See ScreenSource.address."""
        return self._store.uri(path)

    def list_files(self, folder: str = "") -> Sequence[FileFacts]:
        """See ScreenSource.list_files."""
        prefix = f"{folder}/" if folder else ""
        found = self._store.list_level(prefix)[0]
        if not found:  # a bucket has no folders, only names that begin alike
            raise UnreadableError(folder, "there is no object")
        named = [FileFacts(each.key[len(prefix) :], each.size, each.version) for each in found]
        return [facts for facts in named if not _is_clutter(facts.name)]

    def list_folders(self, folder: str = "") -> Sequence[str]:
        """See ScreenSource.list_folders."""
        names = self._store.list_level(f"{folder}/" if folder else "")[1]
        return [name for name in names if not _is_clutter(name)]

    def list_trees(self, folders: Sequence[str]) -> Sequence[FileFacts]:
        """See ScreenSource.list_trees; the folders directly in each are listed in parallel."""
        with ThreadPoolExecutor(LISTINGS, thread_name_prefix="list") as pool:
            prefixes = [f"{folder}/" if folder else "" for folder in folders]
            levels = list(pool.map(self._store.list_level, prefixes))
            found = [each for objects, _ in levels for each in objects if not _is_clutter(each.key.rpartition("/")[2])]
            pairs = [(prefix, name) for prefix, (_, names) in zip(prefixes, levels, strict=True) for name in names]
            below = [f"{prefix}{name}/" for prefix, name in pairs if not _is_clutter(name)]
            for folder, part in zip(below, pool.map(lambda folder: list(self._store.scan(folder)), below), strict=True):
                found += [each for each in part if not _is_clutter(each.key[len(folder) :])]
        return [FileFacts(each.key, each.size, each.version) for each in found]

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """See ScreenSource.read_many."""
        try:
            return self._store.get_many(paths)
        except MissingObjectError as missing:
            uri = missing.args[0]
            path = next(path for path in paths if self.address(path) == uri)
            raise UnreadableError(path, "no such object", missing=True) from None


def source_of(source: ScreenSource | Path) -> ScreenSource:
    """The source itself, or that of a directory's path."""
    return ScreenDirectory(source) if isinstance(source, Path) else source
