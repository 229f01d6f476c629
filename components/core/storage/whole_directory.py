"""Directories that appear whole or not at all. Local files only.

A directory is made under a hidden name beside its place, and locked by its maker with flock(2), which ends with the process
however it ends: what nobody holds was left by a process that was killed, and goes when its place is next made. Where a
file system knows no locks, such leavings stay.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """Yields an empty directory beside `out` that takes its name when the block ends well, and goes when it does not.

    An earlier `out` stays as it is until the new one is complete, then is replaced as a whole.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(out)
    making, lock = _locked(out, "")
    try:
        making.chmod(0o755)
        yield making
        if out.exists():
            # A directory cannot be renamed over a full one: move the old one aside first.
            old, old_lock = _locked(out, "old.")
            try:
                out.replace(old / out.name)
                making.replace(out)
                shutil.rmtree(old)
            finally:
                os.close(old_lock)
        else:
            making.replace(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _locked(out: Path, kind: str) -> tuple[Path, int]:
    """A new hidden directory beside `out`, and the descriptor that holds its lock."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.{kind}", dir=out.parent))
        descriptor = _lock(made)
        if descriptor is not None and made.exists():
            return made, descriptor
        # Between making and locking it, another process took it for a leaving.
        if descriptor is not None:
            os.close(descriptor)


def _lock(directory: Path, or_none: bool = False) -> int | None:
    """A descriptor that holds the directory's lock; None where another process holds it, or the directory is gone.

    Args:
        directory: which.
        or_none: None also where the file system knows no locks; else a descriptor that holds nothing.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if or_none or isinstance(error, BlockingIOError):
            os.close(descriptor)
            return None
    return descriptor


def _clear_up(out: Path) -> None:
    """Removes what killed processes left, and puts back an earlier `out` that one of them had moved aside."""
    hidden = re.compile(rf"\.{re.escape(out.name)}\.(old\.)?[a-z0-9_]{{8}}")
    for left in list(out.parent.iterdir()):
        if not hidden.fullmatch(left.name) or left.is_symlink() or not left.is_dir():
            continue
        descriptor = _lock(left, or_none=True)
        if descriptor is None:
            continue
        try:
            if (left / out.name).is_dir() and ".old." in left.name and not out.exists():
                with suppress(OSError):  # somebody else has just made it
                    (left / out.name).replace(out)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(descriptor)
