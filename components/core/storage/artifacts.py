"""Artifacts of other steps by address: a local path, or an object or folder in the store. KFP writes `minio://`.

A step that receives addresses as strings instead of KFP artifacts (report, which reads every cell type) gets them here.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError
from components.core.storage.digests import digest_text
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import open_beside
from components.core.storage.run_record import run_address
from components.core.storage.source_run import OPTION

UNFINISHED = ".unfinished"
"""An object of this name is in a folder that is still being written, or whose writer was killed."""


def local_copy(uri: str, into: Path) -> Path:
    """The artifact as a local file or folder.

    Args:
        uri: a local path, `file://`, `s3://bucket/key` or `minio://bucket/key`; the key is an object or a folder.
        into: a folder for copies, made when missing. Artifacts of the same name do not overwrite each other.

    Returns:
        A local artifact's own path; for a stored one the path of its copy below `into`, whole.

    Raises:
        InputError: nothing is there, it is not whole, the address is of another kind, or the copy cannot be written.
        StepError: the store failed.
    """
    if uri.startswith("file://"):
        return _existing(Path(unquote(urlsplit(uri).path)), uri)
    if "://" not in uri:
        return _existing(Path(uri), uri)
    from components.core.storage.object_store import ObjectStore, parse_uri

    bucket, key = parse_uri(uri)
    key = key.rstrip("/")
    if not key:
        raise InputError(f"{uri}: names a whole bucket; add the artifact's key")
    store = ObjectStore.connect(bucket)
    target = into / digest_text(uri)[:12] / key.rpartition("/")[2]
    partial = target.with_name(f".{uuid.uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if store.exists(key):
            store.download_file(key, target)
            return target
        below = store.list(f"{key}/")
        if not below:
            raise InputError(f"{uri}: there is neither an object nor a folder of this name in the store")
        if f"{key}/{UNFINISHED}" in below:
            raise InputError(f"{uri}: is not whole; wait for the step that writes it, or run that step again")
        for each in below:
            name = each[len(key) + 1 :]
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise InputError(f"{store.uri(each)}: its name leads out of the folder; rename it")
            copy = partial / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            store.download_file(each, copy)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def source_store(own: ObjectStorage, init_from: str) -> tuple[ObjectStorage, str]:
    """The store and the key of the run that another starts from.

    Args:
        own: where a run given by its key alone is looked for; a bucket's address is at its endpoint, if it has one.
        init_from: a key, or s3://BUCKET[/PREFIX]/runs/KEY or file:///FOLDER/runs/KEY.

    Raises:
        InputError: neither, or no credentials in the environment for a bucket.
    """
    try:
        address, key = run_address(init_from)
    except InputError as error:
        folder = "; `cellsignal run` also takes its folder" if Path(init_from).is_dir() else ""
        raise InputError(f"{OPTION}: {error}{folder}") from None
    return (open_beside(own, address) if address else own), key


@contextmanager
def local_file(uri: str | None) -> Iterator[Path | None]:
    """The file at an address, on this machine while it is needed; None where there is no address.

    Raises:
        InputError: as local_copy.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        yield local_copy(uri, Path(folder)) if uri else None


def _existing(path: Path, uri: str) -> Path:
    if not path.exists():
        raise InputError(f"{uri}: no such file or folder")
    return path
