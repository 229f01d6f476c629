"""The object store and the screen at an address: in an S3 bucket, or in a folder of a file system.

The S3 clients are loaded where a bucket is named, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError
from components.core.screen.screen_source import ScreenDirectory, ScreenSource
from components.core.storage.folder_store import FolderStore
from components.core.storage.interface import ObjectStorage

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

FOLDER = "file://"


def is_folder(address: str) -> bool:
    """Whether the address names a folder, which needs neither a server nor credentials."""
    return address.startswith(FOLDER)


def open_store(
    address: str, prefix: str = "", environment: Mapping[str, str] | None = None
) -> FolderStore | ObjectStore:
    """Opens a store without asking it anything; `check` says whether it can be used.

    Args:
        address: `bucket`, `s3://bucket[/prefix]`, `minio://bucket[/prefix]`, or `file:///FOLDER`.
        prefix: further prefix below that of the address.
        environment: variables that lead to a bucket; None for this process's own.

    Raises:
        InputError: no such address, or no credentials in the environment for a bucket.
    """
    if is_folder(address):
        return FolderStore.connect(address, prefix)
    from components.core.storage.object_store import ObjectStore

    return ObjectStore.connect(address, prefix, environment)


def open_existing(address: str, prefix: str = "") -> FolderStore:
    """Opens a store in a folder that is there already, and writes nothing into it.

    Raises:
        InputError: no such address, or no such folder; the prefix may be missing, as in a bucket.
    """
    if not FolderStore.connect(address).root.is_dir():
        raise InputError(f"{address}: there is no such folder; correct the address, or mount its file system")
    return FolderStore.connect(address, prefix)


def open_beside(own: ObjectStorage, address: str) -> FolderStore | ObjectStore:
    """The store at the address of another one; of two buckets both are at the same endpoint.

    Raises:
        InputError: no such address, or no credentials in the environment for a bucket.
    """
    if is_folder(address):
        return FolderStore.connect(address)
    from components.core.storage.object_store import ObjectStore

    return own.elsewhere(address) if isinstance(own, ObjectStore) else ObjectStore.connect(address)


def join_address(bucket: str, prefix: str) -> str:
    """The address of a prefix of `store.bucket`, as one text."""
    whole = bucket if "://" in bucket else f"s3://{bucket}"
    return "/".join(part for part in (whole.rstrip("/"), prefix.strip("/")) if part)


def is_bucket(address: str) -> bool:
    """Whether the address names a bucket, which needs an endpoint and credentials."""
    return address.startswith(("s3://", "minio://"))


def open_screen(address: str) -> ScreenSource:
    """The place of a screen; nothing is asked of it.

    Args:
        address: a directory, `file:///DIRECTORY`, `s3://bucket[/prefix]` or `minio://bucket[/prefix]`.

    Raises:
        InputError: an address of another kind, or no credentials in the environment for a bucket.
    """
    if is_bucket(address):
        from components.core.storage.object_store import ObjectStore
        from components.core.storage.screen_bucket import ScreenBucket

        return ScreenBucket(ObjectStore.connect(address))
    if is_folder(address):
        return ScreenDirectory(Path(unquote(urlsplit(address).path)))
    if "://" in address:
        raise InputError(f"{address}: a screen is a directory or at s3://BUCKET/PREFIX")
    return ScreenDirectory(Path(address))


def whole_address(address: str) -> str:
    """The address of a screen as any process understands it, whatever its working directory."""
    return address.rstrip("/") if "://" in address else str(Path(address).resolve())
