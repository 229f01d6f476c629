"""Whether an object store does all that runs ask of it, under a prefix that is thrown away. Speaks to the store, prints nothing."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from components.core.errors import InputError, StepError
from components.core.storage.digests import digest_file
from components.core.storage.folder_store import FolderStore
from components.core.storage.interface import ObjectStorage
from pipelines.doctor.checks import Finding, Level

PARTS_MIB = 33
"""A little more than a part of an upload, so that there are two."""


def check_store(store: ObjectStorage) -> Iterator[Finding]:
    """Checks the store that a run would use. A folder that is not there yet is tried on its disk, and not left behind."""
    if isinstance(store, FolderStore) and not store.root.is_dir():
        with tempfile.TemporaryDirectory(prefix=".cellsignal-doctor-", dir=_nearest(store.root)) as folder:
            yield from check_operations(FolderStore(Path(folder)), store.uri(""))
    else:
        yield from check_operations(store, store.uri(""))


def check_operations(store: ObjectStorage, address: str) -> Iterator[Finding]:
    """Tries each kind of request; what it writes it deletes, whatever happens."""
    store.check()
    place = f"doctor-{uuid.uuid4().hex}"
    yield Finding("object store", "ok", address)
    try:
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
            yield _tried("put, get", lambda: _put_and_get(store, place))
            yield _tried("multipart", lambda: _multipart(store, place, Path(folder)))
            yield _tried("conditional put", lambda: _conditional(store, place))
            # Runs write so nowhere: the champion of the models alone is replaced.
            yield _tried("conditional replace", lambda: _replaced(store, place), "warning")
            yield _tried("list, delete", lambda: _list_and_delete(store, place))
    finally:
        try:
            store.delete_prefix(f"{place}/")
        except (InputError, StepError) as error:
            yield Finding("throw-away objects", "warning", f"{store.uri(place)} could not be deleted ({error})")


def _tried(what: str, attempt: object, otherwise: Level = "failed") -> Finding:
    begun = time.monotonic()
    try:
        said = attempt()  # type: ignore[operator]
    except (InputError, StepError, KeyError) as error:
        return Finding(what, otherwise, " ".join(str(error).split()))
    if said:
        return Finding(what, otherwise, said)
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


def _replaced(store: ObjectStorage, place: str) -> str:
    key = f"{place}/twice"
    store.put(key, b"first")
    _, version = store.get_versioned(key)
    if not store.put_if_version(key, b"second", version) or store.get(key) != b"second":
        return "a conditional put (If-Match) was refused, which promoting models needs (`cellsignal models`); update the store"
    if store.put_if_version(key, b"third", version) or store.get(key) != b"second":
        return "If-Match is ignored, so that two promotions of models could overwrite each other; use a store that honours it"
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
