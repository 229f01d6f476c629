"""Whether an object store supports everything that runs need, tried under a temporary prefix."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from components.core.errors import InputError, StepError
from components.core.storage.digests import digest_file
from components.core.storage.object_store import ObjectStore
from pipelines.doctor.checks import Finding, Level

PARTS_MIB = 33
"""A little more than one part of an upload, so that there are two."""


def check_store(store: ObjectStore) -> Iterator[Finding]:
    """Checks the store that a run would use. If its folder does not exist, a temporary one on the same disk is tried."""
    if store.root is not None and not store.root.is_dir():
        with tempfile.TemporaryDirectory(prefix=".cellsignal-doctor-", dir=_nearest(store.root)) as folder:
            yield from check_operations(ObjectStore(Path(folder)), store.uri(""))
    else:
        yield from check_operations(store, store.uri(""))


def check_operations(store: ObjectStore, address: str) -> Iterator[Finding]:
    """Tries each kind of request, and deletes everything that it wrote."""
    store.check()
    prefix = f"doctor-{uuid.uuid4().hex}"
    yield Finding("object store", "ok", address)
    try:
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            yield _tried("put, get", lambda: _put_and_get(store, prefix))
            yield _tried("multipart", lambda: _multipart(store, prefix, Path(folder)))
            yield _tried("conditional put", lambda: _conditional(store, prefix))
            # A warning: runs replace nothing, only promotions of models do.
            yield _tried("conditional replace", lambda: _replaced(store, prefix), "warning")
            yield _tried("list, delete", lambda: _list_and_delete(store, prefix))
    finally:
        try:
            store.delete_prefix(f"{prefix}/")
        except (InputError, StepError) as error:
            yield Finding("temporary objects", "warning", f"{store.uri(prefix)} could not be deleted ({error})")


def _tried(subject: str, attempt: Callable[[], str], otherwise: Level = "failed") -> Finding:
    started = time.monotonic()
    try:
        problem = attempt()
    except (InputError, StepError, KeyError) as error:
        return Finding(subject, otherwise, " ".join(str(error).split()))
    if problem:
        return Finding(subject, otherwise, problem)
    return Finding(subject, "ok", f"{(time.monotonic() - started) * 1000:.0f} ms")


def _put_and_get(store: ObjectStore, prefix: str) -> str:
    content = secrets.token_bytes(100_000)
    store.put(f"{prefix}/small", content)
    if store.get(f"{prefix}/small") != content or store.get_many([f"{prefix}/small"]) != [content]:
        return "the object came back with other bytes; this store loses data, use another"
    return ""


def _multipart(store: ObjectStore, prefix: str, folder: Path) -> str:
    sent, back = folder / "sent", folder / "back"
    with sent.open("wb") as file:
        for _ in range(PARTS_MIB):
            file.write(os.urandom(1 << 20))
    store.upload_file(sent, f"{prefix}/large")
    store.download_file(f"{prefix}/large", back)
    if digest_file(sent) != digest_file(back):
        return f"{PARTS_MIB} MiB in parts came back with other bytes; this store loses data, use another"
    return ""


def _conditional(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/once"
    if not store.put_if_absent(key, b"first"):
        return "a conditional put (If-None-Match: *) of a new object was refused; update the store"
    if store.put_if_absent(key, b"second") or store.get(key) != b"first":
        return "conditional puts are ignored, so that two pods could overwrite each other; use a store that honours If-None-Match"
    return ""


def _replaced(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/twice"
    store.put(key, b"first")
    _, version = store.get_versioned(key)
    if not store.put_if_version(key, b"second", version) or store.get(key) != b"second":
        return "a conditional put (If-Match) was refused, which promoting models needs (`cellsignal models`); update the store"
    if store.put_if_version(key, b"third", version) or store.get(key) != b"second":
        return "If-Match is ignored, so that two promotions of models could overwrite each other; use a store that honours it"
    return ""


def _list_and_delete(store: ObjectStore, prefix: str) -> str:
    store.put(f"{prefix}/listed/a", b"a")
    store.put(f"{prefix}/listed/b", b"b")
    if list(store.list(f"{prefix}/listed/")) != [f"{prefix}/listed/a", f"{prefix}/listed/b"]:
        return "a listing lacks objects that were just written; use a consistent store"
    store.delete(f"{prefix}/listed/a")
    store.delete_prefix(f"{prefix}/listed/")
    return "deleted objects are still listed; use a consistent store" if store.list(f"{prefix}/listed/") else ""


def _nearest(path: Path) -> Path:
    """The nearest existing folder above."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())
