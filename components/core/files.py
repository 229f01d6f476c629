"""Files that appear complete or not at all, locks between processes, file:// addresses, the cache folder. Local disks only."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from components.core.errors import InputError


def cache_folder() -> Path:
    """This program's part of the user's cache folder, absolute; may be missing."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.abspath(cache)) / "cellsignal"  # noqa: PTH100 - links stay as the user made them


def scheme_of(address: str) -> str:
    """The scheme of an address, also of one that lacks a slash (`s3:/bucket`); empty for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", address)
    return found[1].lower() if found else ""


def parse_folder(uri: str) -> Path:
    """The folder of file:///FOLDER; InputError for anything else."""
    parts = urlsplit(uri, allow_fragments=False)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc or not path.startswith("/") or not path.strip("/"):
        raise InputError(f"{uri}: write file:///PATH, the absolute path after file://")
    return Path(os.path.abspath(path))  # noqa: PTH100


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it; an earlier file stays until then.

    Args:
        path: the file; its folder must exist.
        content: text is written as UTF-8.

    Raises:
        OSError: the file, which the error names, cannot be written. Nothing of it is left.
    """
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def atomic_path(out: Path) -> Iterator[Path]:
    """Yields a free path; the file or folder that the block makes there becomes `out` when the block ends.

    An earlier `out` stays unchanged until then, and if the block raises. A file replaces a file in one rename; a folder, or a file
    that a folder replaces, is moved away first, so that `out` is missing for a moment. Temporary folders are hidden siblings of
    `out`; the next call removes those of killed processes, and puts back what they had moved away.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for lock in out.parent.glob(f".{glob.escape(out.name)}.*.partial/lock"):
        with suppress(OSError), locked(lock, wait=False):
            _clear(lock.parent, out)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    with locked(work / "lock"):
        try:
            new = work / "new"
            yield new
            # A rename replaces neither a folder that has files, nor a file by a folder.
            if out.is_dir() or (new.is_dir() and out.exists()):
                out.replace(work / "old")
            new.replace(out)
        finally:
            _clear(work, out)


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder, which is there and empty."""
    with atomic_path(out) as new:
        new.mkdir()
        yield new


def _clear(work: Path, out: Path) -> None:
    """Removes a temporary folder; an earlier `out` moved into it goes back if nothing has replaced it."""
    if (work / "old").exists() and not out.exists():
        (work / "old").replace(out)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file against other processes and threads; the lock of a killed process is free. The file stays.

    Whoever may write to its folder may lock it, whatever the umask of the user who creates it.

    Raises:
        BlockingIOError: another holds it, and `wait` is false.
        OSError: the file cannot be created.
    """
    lock = FileLock(path, mode=path.parent.stat().st_mode & 0o666)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise BlockingIOError(f"{path}: locked by another process") from None
    try:
        yield
    finally:
        lock.release()
