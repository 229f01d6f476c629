"""The object store at an address: an S3 bucket, or a folder of a file system that all machines of a run share."""

from __future__ import annotations

from components.core.storage.folder_store import FolderStore
from components.core.storage.interface import ObjectStorage

FOLDER = "file://"


def is_folder(address: str) -> bool:
    """Whether the address names a folder, which needs neither a server nor credentials."""
    return address.startswith(FOLDER)


def open_store(address: str, prefix: str = "") -> ObjectStorage:
    """Opens a store without asking it anything; `check` says whether it can be used.

    Args:
        address: `bucket`, `s3://bucket[/prefix]`, `minio://bucket[/prefix]`, or `file:///FOLDER`.
        prefix: further prefix below that of the address.

    Raises:
        InputError: no such address, or no credentials in the environment for a bucket.
    """
    if is_folder(address):
        return FolderStore.connect(address, prefix)
    from components.core.storage.object_store import ObjectStore  # loads the S3 clients, which a folder does without

    return ObjectStore.connect(address, prefix)


def join_address(bucket: str, prefix: str) -> str:
    """The address of a prefix of `store.bucket`, as one text."""
    whole = bucket if "://" in bucket else f"s3://{bucket}"
    return "/".join(part for part in (whole.rstrip("/"), prefix.strip("/")) if part)
