"""Replaces a file only where its content is still the one that was read: compare-and-swap among processes. Local files only.

The file itself is locked with flock(2), which ends with its process however that ends, so that nothing has to be cleared
away. A writer that waited for the lock finds by opening the file again whether it was replaced meanwhile: opening asks a
network file system's server, where the time or number of a file may be remembered from before. Whoever replaces the file
without asking for its version (FolderStore.put) is not held up.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from components.core.storage.digests import digest_bytes


def version_of(content: bytes) -> str:
    """What tells this content from another."""
    return digest_bytes(content)


def swap_if(path: Path, version: str, data: bytes, partial: Path) -> bool:
    """Replaces a file's content where it has this version; of several writers one gets True.

    Args:
        path: the file.
        version: of the content that was read.
        data: its next content; appears whole.
        partial: a free path in the same folder, which is gone afterwards unless the process is killed.

    Returns:
        Whether it was replaced; False also where there is no such file.

    Raises:
        OSError: the file system refuses, or knows no locks.
    """
    while True:
        try:
            # For writing: network file systems lock exclusively only what may be written.
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(path, file):
                continue
            if version_of(_content(file)) != version:
                return False
            try:
                partial.write_bytes(data)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            return True
        finally:
            os.close(file)


def _is_still(path: Path, file: int) -> bool:
    """Whether the path still leads to the file that is open."""
    try:
        again = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return os.path.sameopenfile(file, again)
    finally:
        os.close(again)


def _content(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as reading:
        reading.seek(0)
        return reading.read()
