"""Inputs and outputs of steps by address, without KFP: a path, file://, s3:// or minio:// (as KFP writes it).

`local_copy` copies an input to this machine. `step_files` also uploads the outputs of a step that a user or a Kubernetes Job
starts. An output folder in a bucket is complete or refused: it has the object `.unfinished` while it is being written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from components.core.errors import InputError, StepError
from components.core.files import atomic_directory
from components.core.storage.digests import digest_text, file_names
from components.core.storage.object_store import ObjectStore, parse_folder, parse_uri
from components.core.storage.opening import is_bucket, is_folder, open_store
from components.core.storage.run_records import OPTION, run_address

UNFINISHED = ".unfinished"
_TRANSFERS = 8  # files under way at a time


def local_copy(uri: str, into: Path) -> Path:
    """The artifact as a local file or folder.

    Args:
        uri: a local path, `file://`, `s3://bucket/key` or `minio://bucket/key`; the key is an object or a folder.
        into: a folder for copies, created if missing. Artifacts of the same name do not overwrite each other.

    Returns:
        A local artifact's own path; for a stored one the path of its complete copy below `into`.

    Raises:
        InputError: nothing is there, it is unfinished, the address is of another kind, or the copy cannot be written.
    """
    if is_folder(uri) or "://" not in uri:
        path = parse_folder(uri) if is_folder(uri) else Path(uri)
        if not path.exists():
            raise InputError(f"{uri}: no such file or folder")
        return path
    store, key = _stored(uri, "the artifact's key")
    target = into / digest_text(uri)[:12] / key.rpartition("/")[2]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if store.exists(key):
            store.download_file(key, target)
            return target
        below = store.list(f"{key}/")
        if not below:
            raise InputError(f"{uri}: there is neither an object nor a folder of this name in the store")
        if f"{key}/{UNFINISHED}" in below:
            raise InputError(f"{uri}: is unfinished; wait for the step that writes it, or run that step again")
        with atomic_directory(target) as folder:
            copies = {each: folder / each[len(key) + 1 :] for each in below}
            for each, copy in copies.items():
                if ".." in copy.parts or not copy.is_relative_to(folder):
                    raise InputError(f"{store.uri(each)}: its name leads out of the folder; rename it")
                copy.parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(store.download_file, copies, copies.values()))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def source_store(own: ObjectStore, init_from: str) -> tuple[ObjectStore, str]:
    """Store and key of the run that another starts from: `init_from` is its address, or its key in the run's own store."""
    try:
        address, key = run_address(init_from)
    except InputError as error:
        folder = "; `cellsignal run` also takes its folder" if Path(init_from).is_dir() else ""
        raise InputError(f"{OPTION}: {error}{folder}") from None
    return (open_store(address) if address else own), key


@contextmanager
def local_file(uri: str | None) -> Iterator[Path | None]:
    """The file at an address, on this machine inside the block; None if there is no address. Raises as `local_copy`.

    Errors of the block give the address in place of the copy's path.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        path = local_copy(uri, Path(folder)) if uri else None
        try:
            yield path
        except (InputError, StepError) as error:
            raise type(error)(str(error).replace(str(path), uri or "")) from None


class StepFiles:
    """Local paths of a step's inputs and outputs that the user gave by address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._addresses: dict[Path, str] = {}
        self._outputs: dict[Path, tuple[ObjectStore, str]] = {}

    def input(self, uri: str) -> str:
        """The local path of an input, downloaded if it is in a bucket. Raises as `local_copy`."""
        path = local_copy(uri, self._folder / "inputs")
        self._addresses[path] = uri
        return str(path)

    def output(self, uri: str) -> str:
        """The local path where a step writes an output; InputError if the address or its store cannot be used."""
        if is_folder(uri):
            return str(parse_folder(uri))
        if not is_bucket(uri):
            if "://" in uri:
                raise InputError(f"{uri}: an output goes to a path, file:// or s3://BUCKET/KEY")
            return uri
        store, key = _stored(uri, "a key for the output")
        store.check("create it, or correct the output's address")  # before the work, not after it
        path = self._folder / "outputs" / digest_text(uri)[:12] / key.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._addresses[path] = uri
        self._outputs[path] = store, key
        return str(path)

    def upload(self) -> None:
        """Uploads the outputs; StepError if one was not written."""
        for path in self._outputs:
            if not path.exists():
                raise StepError(f"{self._addresses[path]}: the step has not written it")
        folders = [(store, f"{key}/") for path, (store, key) in self._outputs.items() if path.is_dir()]
        for store, folder in folders:  # none is complete before all are
            store.put(folder + UNFINISHED, b"")
            store.delete_many([each for each in store.list(folder) if each != folder + UNFINISHED])
        uploads = [
            (store, path / name, f"{key}/{name}".rstrip("/"))
            for path, (store, key) in self._outputs.items()
            for name in (file_names(path) if path.is_dir() else [""])
        ]
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda upload: upload[0].upload_file(*upload[1:]), uploads))
        for store, folder in folders:
            store.delete(folder + UNFINISHED)

    def with_addresses(self, message: str) -> str:
        """A message with the user's addresses in place of temporary paths."""
        for path, uri in self._addresses.items():
            message = message.replace(str(path), uri)
        return message


@contextmanager
def step_files() -> Iterator[StepFiles]:
    """Inputs are local inside the block, outputs are uploaded if it does not raise. Errors name the user's addresses."""
    with tempfile.TemporaryDirectory(prefix="cellsignal-", ignore_cleanup_errors=True) as folder:
        files = StepFiles(Path(folder))
        try:
            yield files
            files.upload()
        except (InputError, StepError) as error:
            raise type(error)(files.with_addresses(str(error))) from None


def _stored(uri: str, lacking: str) -> tuple[ObjectStore, str]:
    """The store and key of an artifact in a bucket."""
    bucket, key = parse_uri(uri)
    key = key.rstrip("/")
    if not key:
        raise InputError(f"{uri}: names a whole bucket; add {lacking}")
    return ObjectStore(bucket), key
