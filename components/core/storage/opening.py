"""Which object store a command uses, and opening a store or a screen by its address: in an S3 bucket, or in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from components.core.config import StoreConfig
from components.core.config.run import STORE_ADDRESS
from components.core.errors import InputError
from components.core.files import parse_folder, scheme_of
from components.core.screen.addressed_images import AddressedImages
from components.core.screen.screen_source import ScreenBucket, ScreenDirectory, ScreenSource
from components.core.storage.object_store import ObjectStore

STORE_VARIABLE = "CELLSIGNAL_STORE"
CLUSTER_BUCKET = "cellsignal"


def choose_store(store: StoreConfig, option: str | None = None) -> StoreConfig:
    """The store of a command on this machine, with an explicit address.

    The order is: --store (a directory, file:///FOLDER or s3://BUCKET[/PREFIX]), the variable CELLSIGNAL_STORE, the configuration, a
    folder in the user's cache. InputError for an address of another kind.
    """
    for source, address in (("--store", option), (STORE_VARIABLE, os.environ.get(STORE_VARIABLE))):
        if address:
            if not scheme_of(address):
                address = Path(address).expanduser().absolute().as_uri()
            elif not re.fullmatch(STORE_ADDRESS, address):
                raise InputError(f"{source} {address}: write s3://BUCKET[/PREFIX], file:///FOLDER or a directory")
            return StoreConfig(bucket=address)
    return store if store.bucket else StoreConfig(bucket=store.address)


def cluster_store(store: StoreConfig) -> StoreConfig:
    """The store of a run on a cluster: null means the bucket `cellsignal`. InputError if it is a folder."""
    if store.bucket and is_folder(store.bucket):
        raise InputError(
            f"store.bucket: {store.bucket} is a folder, which the pods of a cluster do not share; give an S3 bucket"
        )
    return store if store.bucket else store.model_copy(update={"bucket": CLUSTER_BUCKET})


def is_folder(address: str) -> bool:
    """Whether the address names a folder, which needs neither a server nor credentials."""
    return address.startswith("file://")


def is_bucket(address: str) -> bool:
    """Whether the address names a bucket, which needs an endpoint and credentials."""
    return address.startswith(("s3://", "minio://"))


def open_existing(address: str) -> ObjectStore:
    """Opens a store for a command that reads: InputError unless it exists and answers. A prefix in a bucket need not exist."""
    store = ObjectStore(address)
    if store.root is None:
        store.check()
    elif not store.root.is_dir():
        if address == StoreConfig().address:
            raise InputError(
                f"{address}: nothing has been stored yet; start with `cellsignal run`, or give another store (--store)"
            )
        advice = f"correct --store or {STORE_VARIABLE}, or mount its file system"
        raise InputError(f"{address}: there is no object store; {advice}")
    return store


def split_address(address: str, folder: str, names: str, expected: str, name: str) -> tuple[str, str]:
    """Store and name of ADDRESS_OF_STORE/FOLDER/NAME; the store is empty for a name alone.

    `names` is the pattern of a name. The InputError for anything else describes one as `expected`, and as `name` in an address.
    """
    whole = address.rstrip("/")
    store, _, found = whole.rpartition(f"/{folder}/")
    in_store = re.fullmatch(STORE_ADDRESS, store) and not store.endswith("/")
    if not re.fullmatch(names, found) or not (in_store or found == whole):
        raise InputError(
            f"{address}: neither {expected} nor its address, which looks like s3://BUCKET[/PREFIX]/{folder}/{name} or "
            f"file:///FOLDER/{folder}/{name}"
        )
    return store, found


def open_screen(address: str) -> ScreenSource:
    """Opens a screen without any request, by a directory, `file:///DIRECTORY`, `s3://bucket[/prefix]` or `minio://...`.

    Its tables may name images in buckets too. InputError for an address of another kind, or without credentials for a bucket.
    """
    return AddressedImages(_open_own(address), _open_own)


def _open_own(address: str) -> ScreenSource:
    if is_bucket(address):
        return ScreenBucket(ObjectStore(address))
    if is_folder(address):
        return ScreenDirectory(parse_folder(address))
    if "://" in address:
        raise InputError(f"{address}: a screen is a directory or at s3://BUCKET/PREFIX")
    return ScreenDirectory(Path(address))


def whole_address(address: str) -> str:
    """The address of a screen as any process understands it, whatever its working directory."""
    return address.rstrip("/") if "://" in address else str(Path(address).resolve())
