"""A folder as object store: for a lab whose machines share a file system, and for one machine without a server.

Keys are paths below the folder. An object is written under a hidden temporary name and renamed, so that it appears whole;
a process killed meanwhile leaves such a name behind, which no listing shows but that of unfinished uploads. Nothing is
synced: after a power cut the digests in manifests and records tell what was lost.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError, StepError
from components.core.storage.file_swap import swap_if, version_of
from components.core.storage.interface import MissingObjectError, StoredObject
from components.core.storage.side_by_side import side_by_side

IN_FLIGHT = 16
"""Files that one store reads or writes side by side: a network file system answers each after a while."""

_BATCH_BYTES, _BATCH_OBJECTS = 64 * 1024, 8  # written by one thread, one after the other
_ATTEMPTS = 100  # another process may delete the folder, or the temporary file in it, between two steps of a write
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


class FolderStore:
    """Reads and writes objects below a folder; safe in threads, and among processes that share the folder.

    Attributes:
        root: the folder, absolute.
        requests: files read and written so far, "gets" and "puts", and folders listed, "lists".
    """

    def __init__(self, root: Path, within: Path | None = None, parents: bool = False) -> None:
        """Opens a store.

        Args:
            root: the folder.
            within: a folder above it that is known to the user; `check` makes no other.
            parents: whether `check` also makes the folders above that one.
        """
        self._parents = parents
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - a link to a mounted disk stays the user's own name of it
        self.requests = {"gets": 0, "puts": 0, "lists": 0}
        self._within = within or self.root
        self._root = str(self.root)
        self._mark, self._number = uuid.uuid4().hex, itertools.count()
        self._counting = threading.Lock()
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="folder")

    @classmethod
    def connect(cls, uri: str, prefix: str = "", parents: bool = False) -> FolderStore:
        """Opens a store by its address, file:///FOLDER; `check` says whether it can be used.

        Raises:
            InputError: not such an address.
        """
        parts = urlsplit(uri, allow_fragments=False)
        path = unquote(parts.path)
        if parts.scheme != "file" or parts.netloc or not path.startswith("/") or not path.strip("/"):
            raise InputError(f"object store {uri!r}: write file:///FOLDER, the folder's whole path after file://")
        return cls(Path(path) / prefix.strip("/"), Path(path), parents)

    def __repr__(self) -> str:
        return f"FolderStore({str(self.root)!r})"

    def __reduce__(self) -> tuple[type[FolderStore], tuple[Path]]:
        return FolderStore, (self.root,)

    def below(self, prefix: str) -> FolderStore:
        """The store under a further prefix, with its own request count."""
        return FolderStore(self.root / prefix.strip("/"))

    def uri(self, key: str) -> str:
        """The object's address, file:///FOLDER/KEY."""
        return self.local_path(key).as_uri() if key else self.root.as_uri()

    def local_path(self, key: str) -> Path:
        """The file that holds the object, whether or not it is there.

        Raises:
            InputError: the key would lead out of the folder.
        """
        self._check_key(key)
        return self.root / key

    def check(self) -> None:
        """Makes the folder, unless the one above it is missing too, and writes into it.

        Raises:
            InputError: the folder cannot be made or written.
        """
        probe = self.root / f".{uuid.uuid4().hex}.partial"
        try:
            # No deeper: a file system that is not mounted must not be replaced by folders on another disk.
            self._within.mkdir(exist_ok=True, parents=self._parents)
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
        except OSError as error:
            raise InputError(
                f"{self.uri('')}: the object store cannot be written here ({error.strerror}); create the folder, or choose another "
                "with --store"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            MissingObjectError: there is none.
            InputError: the file may not be read.
            StepError: the file system failed.
        """
        self._count("gets")
        with self._errors(key, "get"):
            return self.local_path(key).read_bytes()

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The objects' bytes in the order of the keys. Raises as `get`."""
        return list(self._pool.map(self.get, keys))

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole, replacing an earlier one.

        Raises:
            InputError: the folder may not be written.
            StepError: the file system failed.
        """
        self._count("puts")
        with self._errors(key, "put"):
            self._write(key, _fill_with(data), os.replace)

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Writes objects side by side; returns when all are written. Raises as `put`.

        The items are drawn as files are finished, so a generator keeps no more than those in memory.
        """
        side_by_side(self.put, items, self._pool, IN_FLIGHT)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the object only where there is none; of several writers one gets True. Raises as `put`."""
        self._count("puts")

        def link(partial: str, path: str) -> None:
            try:
                os.link(partial, path)
            except FileExistsError:
                # A file server that repeats a request whose answer was lost says so although the link is ours.
                if Path(partial).stat().st_nlink != 2:
                    raise
            Path(partial).unlink(missing_ok=True)

        try:
            with self._errors(key, "conditional put"):
                self._write(key, _fill_with(data), link)
        except FileExistsError:
            return False
        return True

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and their digest, which is their version. Raises as `get`."""
        content = self.get(key)
        return content, version_of(content)

    def put_if_version(self, key: str, data: bytes, version: str) -> bool:
        """Replaces the object only where its content has this digest; of several writers one gets True.

        Raises:
            InputError: the folder may not be written.
            StepError: the file system failed, or has no locks.
        """
        self._count("puts")
        with self._errors(key, "conditional put"):
            path = self.local_path(key)
            partial = path.with_name(f".{self._mark}-{os.getpid()}-{next(self._number)}.partial")
            return swap_if(path, version, data, partial)

    def exists(self, key: str) -> bool:
        """Whether there is an object at the key."""
        self._count("gets")
        with self._errors(key, "look"):
            return self.local_path(key).is_file()

    def list(self, prefix: str = "") -> Sequence[str]:
        """All keys that start with the prefix, sorted. Raises as `get`, but no MissingObjectError."""
        return sorted(key for key, hidden in self._walk(prefix) if not hidden)

    def scan(self, prefix: str = "") -> Iterator[StoredObject]:
        """What `list` names, with size and time, folder by folder: no more than a folder's names is in memory.

        Raises:
            InputError: the folder may not be read.
            StepError: the file system failed.
        """
        for key, hidden in self._walk(prefix):
            found = None if hidden else self._facts(key)
            if found is not None:
                yield StoredObject(key, found.st_size, _modified(found))

    def delete(self, key: str) -> None:
        """Deletes one object; a missing one is no error. Raises as `put`."""
        with self._errors(key, "delete"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.local_path(key).unlink()

    def delete_prefix(self, prefix: str) -> int:
        """Deletes every object whose key starts with the prefix, and folders this empties; returns how many objects.

        Raises:
            InputError: the prefix would be the whole store, or may not be deleted.
            StepError: the file system failed.
        """
        if not prefix.strip("/"):
            raise InputError(f"{self.uri('')}: refusing to delete the whole store; name a prefix")
        found = list(self._walk(prefix))
        self.delete_many([key for key, _ in found])
        return sum(not hidden for _, hidden in found)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Deletes objects side by side, and folders this empties; missing ones are no error. Raises as `put`."""
        list(self._pool.map(self.delete, keys))
        for folder in sorted({folder for key in keys for folder in Path(key).parents if folder.name}, reverse=True):
            with contextlib.suppress(OSError):  # another object is in it
                (self.root / folder).rmdir()

    def upload_file(self, path: Path, key: str) -> None:
        """Copies a file of any size into the store; the object appears whole.

        Raises:
            InputError: the file cannot be read, or the folder may not be written.
            StepError: the file system failed.
        """
        self._count("puts")
        try:
            path.open("rb").close()
        except OSError as error:
            raise InputError(f"{path}: cannot be read for upload ({error.strerror})") from None
        with self._errors(key, "upload"):
            self._write(key, lambda partial: shutil.copyfile(path, partial), os.replace)

    def download_file(self, key: str, path: Path) -> None:
        """Copies an object of any size to a file, which appears whole or not at all.

        Raises:
            MissingObjectError: there is no such object.
            InputError: the file cannot be written, or the object may not be read.
        """
        self._count("gets")
        source = self.local_path(key)
        with self._errors(key, "download"):
            source.open("rb").close()
        partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.partial")
        try:
            shutil.copyfile(source, partial)
            partial.replace(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, key: str, fill: Callable[[str], object], place: Callable[[str, str], None]) -> None:
        """Fills a temporary file beside the object's and puts it into its place; makes folders as needed."""
        self._check_key(key)
        # Names are plain text here: for small objects pathlib would cost as much as the file system.
        path = f"{self._root}/{key}"
        folder = path.rpartition("/")[0]
        partial = f"{folder}/.{self._mark}-{os.getpid()}-{next(self._number)}.partial"
        for attempt in range(_ATTEMPTS):
            try:
                fill(partial)
                place(partial, path)
                return
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise

    def _walk(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Keys of the files below a prefix, and whether each is a temporary one."""
        folder = prefix.rpartition("/")[0]
        start = self.local_path(folder) if folder else self.root

        def complain(error: OSError) -> None:
            if error.errno not in _NO_FILE:
                raise error

        with self._errors(prefix, "list"):
            for place, folders, files in os.walk(start, onerror=complain):
                self._count("lists")
                within = Path(place).relative_to(self.root).as_posix()
                inside = "" if within == "." else f"{within}/"
                folders[:] = [
                    name for name in folders if f"{inside}{name}/".startswith(prefix[: len(inside + name) + 1])
                ]
                for name in files:
                    hidden = name.startswith(".") and name.endswith(".partial")
                    if f"{inside}{name}".startswith(prefix) or (hidden and inside.startswith(prefix)):
                        yield f"{inside}{name}", hidden

    def _facts(self, key: str) -> os.stat_result | None:
        """Size and time of a file; None where it has gone since its folder was listed."""
        with self._errors(key, "look"):
            try:
                return (self.root / key).stat()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _check_key(self, key: str) -> None:
        parts = key.split("/")
        if ".." in parts or "." in parts or "" in parts[:-1] or key in ("", "/"):
            raise InputError(f"{self.root}: {key!r} is not the key of an object")

    def _count(self, kind: str) -> None:
        with self._counting:
            self.requests[kind] += 1

    @contextmanager
    def _errors(self, key: str, action: str) -> Iterator[None]:
        """Turns what the file system refuses into this package's errors; FileExistsError passes."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            uri = self.uri(key) if key else self.uri("")
            if error.errno in _NO_FILE and action in ("get", "download"):
                raise MissingObjectError(uri) from None
            if error.errno in _NO_RIGHT:
                raise InputError(
                    f"{uri}: {action} refused ({error.strerror}); correct the rights of the folder"
                ) from None
            room = f"; {self._room()}" if error.errno in _NO_ROOM else ""
            raise StepError(f"{uri}: {action} failed ({error.strerror or error}){room}") from None

    def _room(self) -> str:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.root).free / 1e6
            return (
                f"make room on the disk of {self.root}, which has {free:,.0f} MB free, and run the same command again"
            )
        return f"make room on the disk of {self.root} and run the same command again"


def _modified(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)


def _batches(items: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Joins small objects, each of which takes less time than handing it to another thread."""
    batch: list[tuple[str, bytes]] = []
    waiting = 0
    for item in items:
        batch.append(item)
        waiting += len(item[1])
        if waiting >= _BATCH_BYTES or len(batch) == _BATCH_OBJECTS:
            yield batch
            batch, waiting = [], 0
    if batch:
        yield batch


def _fill_with(data: bytes) -> Callable[[str], object]:
    def fill(path: str) -> None:
        # Python's own file objects make twice as many system calls, and between calls wait for its lock.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
        finally:
            os.close(file)

    return fill
