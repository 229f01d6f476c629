"""Packed sites as files on the node's own disk, up to a total size, shared by the processes of the node. Local files only.

A file's name is the SHA-256 of its content, so a file may be damaged but never out of date. Files are written under a lock, all to
one temporary name, and appear by a rename. The size in use is a number in the lock file, raised before a file is written, so a
crash can only leave it too large; an eviction counts again. The least recently read files are evicted first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.core import progress

_LOCK = ".lock"
"""Locked with flock(2) itself: filelock polls, and a loader adds hundreds of files a second."""
_KEPT = 0.95
"""Share of the limit that an eviction leaves in use, so that the folder is listed once in many additions."""

Buffer = bytes | bytearray | memoryview


class NodeCache:
    """A folder of immutable files by digest, for threads and processes.

    If its disk fails, reading goes on without it: a file that cannot be read counts as missing, and after the first failed write
    this process warns once and adds nothing more.

    Args:
        folder: created if missing.
        limit_bytes: largest sum of the files' sizes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = str(folder)
        self._limit = limit_bytes
        self._writes = True
        self._lock = threading.Lock()
        self._descriptor = -1

    def read_into(self, digest: str, buffer: bytearray | memoryview) -> int:
        """Reads a file, and marks it as used; returns the number of bytes read, -1 if there is no such file.

        With one byte more than expected, the buffer shows that a file is too long.
        """
        try:
            descriptor = os.open(self._path(digest), os.O_RDONLY)
            try:
                count = os.readv(descriptor, [buffer])
                os.utime(descriptor)
                return count
            finally:
                os.close(descriptor)
        except OSError:
            return -1

    def add(self, digest: str, data: Buffer) -> None:
        """Keeps a file whose content the caller has verified, unless it is larger than the limit."""
        size = memoryview(data).nbytes
        if not self._writes or size > self._limit:
            return
        path = self._path(digest)
        try:
            with self._locked() as lock:
                if not os.path.exists(path) and self._make_room(lock, size):  # noqa: PTH110
                    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                    with open(f"{self._folder}/.partial", "wb") as file:
                        file.write(data)
                    os.rename(file.name, path)  # noqa: PTH104 - a Path costs more than the rename
        except OSError as error:
            with self._lock:
                first, self._writes = self._writes, False
            if first:
                advice = f"cannot be written ({error.strerror}); going on without adding to it"
                progress.warn(f"loader.node_cache {self._folder}: {advice}")

    def drop(self, digest: str) -> None:
        """Removes a damaged file."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(digest))  # noqa: PTH108

    def _path(self, digest: str) -> str:
        return f"{self._folder}/{digest[:2]}/{digest}"

    def _make_room(self, lock: int, size: int) -> bool:
        """Counts a file in, evicting others if necessary; False if there is no room for it."""
        try:
            used = int(os.pread(lock, 32, 0))
        except ValueError:  # a new cache, or one whose count was lost
            used = self._limit
        if used + size > self._limit:
            used = self._evict(min(self._limit - size, int(self._limit * _KEPT)))
            if used + size > self._limit:
                return False
        os.pwrite(lock, b"%032d" % (used + size), 0)
        return True

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the lock file, locked against threads and processes; a killed holder's lock is free."""
        with self._lock:
            if self._descriptor < 0:
                os.makedirs(self._folder, exist_ok=True)  # noqa: PTH103
                self._descriptor = os.open(f"{self._folder}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                yield self._descriptor
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _evict(self, target: int) -> int:
        """Removes the least recently read files until at most `target` bytes are left; returns how many bytes are."""
        found = sorted(_files(self._folder))
        used = sum(size for _, size, _ in found)
        for _, size, path in found:
            if used > target:
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108
                    used -= size
        return used


def _files(folder: str) -> Iterator[tuple[int, int, str]]:
    """When each file of the cache was last read or written, in nanoseconds, its size and its path."""
    for one in os.scandir(folder):
        if len(one.name) == 2 and one.is_dir(follow_symlinks=False):
            for entry in os.scandir(one.path):
                if entry.name.startswith(one.name) and len(entry.name) == 64:
                    with contextlib.suppress(OSError):
                        facts = entry.stat(follow_symlinks=False)
                        yield facts.st_mtime_ns, facts.st_size, entry.path
