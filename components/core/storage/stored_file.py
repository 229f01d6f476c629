"""A file in the store whose size and digest are known, brought here and checked. The store is passed in."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from components.core.config import FrozenModel
from components.core.storage.digests import digest_file
from components.core.storage.interface import MissingObjectError, ObjectStorage


class StoredFile(FrozenModel):
    """One file of several that lie together."""

    path: str = Field(description="path below what they lie in; empty where that is a file itself")
    size: int = Field(description="bytes")
    sha256: str


class DamagedError(Exception):
    """What is stored is not what its record says."""


def download_checked(store: ObjectStorage, key: str, file: StoredFile, target: Path) -> None:
    """Brings a stored file to a path, and compares it with what is known of it.

    Raises:
        DamagedError: it is missing, or has other content.
    """
    try:
        store.download_file(key, target)
    except MissingObjectError:
        raise DamagedError(f"{store.uri(key)} is missing") from None
    if target.stat().st_size != file.size or digest_file(target) != file.sha256:
        raise DamagedError(f"{store.uri(key)} has other content than was written")
