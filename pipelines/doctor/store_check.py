"""Whether an object store does all that runs ask of it, under a prefix that is thrown away. Speaks to the store, prints nothing."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from components.core.config import StoreConfig
from components.core.errors import InputError, StepError
from components.core.storage.digests import digest_file
from components.core.storage.embedded import EmbeddedStore
from components.core.storage.endpoint import has_keys
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import is_folder, open_existing, open_store
from pipelines.doctor.finding import Finding

PARTS_MIB = 33
"""A little more than a part of an upload, so that there are two."""


def check_store(config: StoreConfig, store_dir: Path) -> Iterator[Finding]:
    """Checks the store that a run would use: a folder, that of the AWS variables, or the embedded one.

    Args:
        config: bucket and prefix.
        store_dir: data of the embedded store.
    """
    if is_folder(config.bucket):
        open_existing(config.bucket)
        yield from check_operations(open_store(config.bucket, config.prefix))
    elif os.environ.get("AWS_ENDPOINT_URL") or has_keys(os.environ):
        if not os.environ.get("AWS_ENDPOINT_URL"):
            yield Finding(
                "object store",
                "warning",
                "AWS_ENDPOINT_URL is not set: Amazon S3 is checked, which submitted runs use; `cellsignal run` uses the embedded "
                "store until it is set",
            )
        yield from check_operations(open_store(config.bucket, config.prefix))
    else:
        yield from _check_embedded(config, store_dir)


def _check_embedded(config: StoreConfig, store_dir: Path) -> Iterator[Finding]:
    """Starts the server where a run would; a folder that is not there yet is not left behind."""
    new = None
    if not store_dir.is_dir():
        new = Path(tempfile.mkdtemp(prefix=".cellsignal-doctor-", dir=_nearest(store_dir)))
    begun = time.monotonic()
    try:
        with EmbeddedStore(new or store_dir) as server:
            server.create_bucket(config.bucket)
            took = time.monotonic() - begun
            yield Finding("embedded server", "ok", f"SeaweedFS on 127.0.0.1 in {took:.1f} s, data in {store_dir}")
            yield from check_operations(open_store(config.bucket, config.prefix, server.environment()))
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def check_operations(store: ObjectStorage) -> Iterator[Finding]:
    """Tries each kind of request; what it writes it deletes, whatever happens."""
    store.check()
    place = f"doctor-{uuid.uuid4().hex}"
    yield Finding("object store", "ok", store.uri(""))
    try:
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            yield _tried("put, get", lambda: _put_and_get(store, place))
            yield _tried("multipart", lambda: _multipart(store, place, Path(folder)))
            yield _tried("conditional put", lambda: _conditional(store, place))
            yield _tried("list, delete", lambda: _list_and_delete(store, place))
    finally:
        try:
            store.delete_prefix(f"{place}/")
        except (InputError, StepError) as error:
            yield Finding("throw-away objects", "warning", f"{store.uri(place)} could not be deleted ({error})")


def _tried(what: str, attempt: object) -> Finding:
    begun = time.monotonic()
    try:
        said = attempt()  # type: ignore[operator]
    except (InputError, StepError, KeyError) as error:
        return Finding(what, "failed", " ".join(str(error).split()))
    if said:
        return Finding(what, "failed", said)
    return Finding(what, "ok", f"{(time.monotonic() - begun) * 1000:.0f} ms")


def _put_and_get(store: ObjectStorage, place: str) -> str:
    content = secrets.token_bytes(100_000)
    store.put(f"{place}/small", content)
    if store.get(f"{place}/small") != content or store.get_many([f"{place}/small"]) != [content]:
        return "the object came back with other bytes; this store loses data, use another"
    return ""


def _multipart(store: ObjectStorage, place: str, folder: Path) -> str:
    sent, back = folder / "sent", folder / "back"
    with sent.open("wb") as file:
        for _ in range(PARTS_MIB):
            file.write(os.urandom(1 << 20))
    store.upload_file(sent, f"{place}/large")
    store.download_file(f"{place}/large", back)
    if digest_file(sent) != digest_file(back):
        return f"{PARTS_MIB} MiB in parts came back with other bytes; this store loses data, use another"
    return ""


def _conditional(store: ObjectStorage, place: str) -> str:
    key = f"{place}/once"
    if not store.put_if_absent(key, b"first"):
        return "a conditional put (If-None-Match: *) of a new object was refused; update the store"
    if store.put_if_absent(key, b"second") or store.get(key) != b"first":
        return "conditional puts are ignored, so that two pods could overwrite each other; use a store that honours If-None-Match"
    return ""


def _list_and_delete(store: ObjectStorage, place: str) -> str:
    store.put(f"{place}/listed/a", b"a")
    store.put(f"{place}/listed/b", b"b")
    if list(store.list(f"{place}/listed/")) != [f"{place}/listed/a", f"{place}/listed/b"]:
        return "a listing lacks objects that were just written; use a consistent store"
    store.delete(f"{place}/listed/a")
    store.delete_prefix(f"{place}/listed/")
    return "deleted objects are still listed; use a consistent store" if store.list(f"{place}/listed/") else ""


def _nearest(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())
