"""Inputs and outputs of steps by address, without KFP: a path, file://, s3:// or minio:// (as KFP writes it).

`local_copy` copies an input to this machine. `step_files` also uploads the outputs of a step that a user or a Kubernetes Job
starts. An output folder in a bucket is complete or refused: it has the object `.unfinished` while it is being written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from components.core.config import RunConfig
from components.core.errors import InputError, StepError
from components.core.files import parse_folder
from components.core.storage.digests import digest_text, file_names
from components.core.storage.object_store import ObjectStore, parse_uri
from components.core.storage.opening import is_folder

UNFINISHED = ".unfinished"
_TRANSFERS = 8  # files under way at a time


def local_copy(uri: str, into: Path) -> Path:
    """A local artifact's own path; for one in a bucket, an object or a folder, the path of its complete copy below `into`.

    Artifacts of the same name do not overwrite each other. InputError if nothing is there, it is unfinished, or the address is of
    another kind.
    """
    if path := _local(uri):
        if not path.exists():
            raise InputError(f"{uri}: no such file or folder")
        return path
    store, key = _stored(uri)
    target = into / digest_text(uri)[:12] / key.rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    if store.exists(key):
        store.download_file(key, target)
        return target
    below = store.list(f"{key}/")
    if not below:
        raise InputError(f"{uri}: there is neither an object nor a folder of this name in the store")
    if f"{key}/{UNFINISHED}" in below:
        raise InputError(f"{uri}: is unfinished; wait for the step that writes it, or run that step again")
    copies = {each: target / each[len(key) + 1 :] for each in below}
    for each, copy in copies.items():
        if ".." in copy.parts or not copy.is_relative_to(target):
            raise InputError(f"{store.uri(each)}: its name leads out of the folder; rename it")
        copy.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(store.download_file, copies, copies.values()))
    return target


class StepFiles:
    """Local paths of a step's inputs and outputs that the user gave by address.

    Attributes:
        addresses: the user's address of each path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.addresses: dict[Path, str] = {}
        self._outputs: dict[Path, tuple[ObjectStore, str]] = {}

    def input(self, uri: str) -> str:
        """The local path of an input, downloaded if it is in a bucket. Raises as `local_copy`."""
        path = local_copy(uri, self._folder / "inputs")
        self.addresses[path] = uri
        return str(path)

    def output(self, uri: str) -> str:
        """The local path where a step writes an output; InputError if the address or its store cannot be used."""
        if path := _local(uri):
            return str(path)
        store, key = _stored(uri)
        store.check()  # before the work, not after it
        path = self._folder / "outputs" / digest_text(uri)[:12] / key.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.addresses[path] = uri
        self._outputs[path] = store, key
        return str(path)

    def upload(self) -> None:
        """Uploads the outputs; StepError if one was not written.

        Before that, it marks folders as unfinished and deletes earlier objects, so that a kill leaves no mixture of old and new.
        """
        for path in self._outputs:
            if not path.exists():
                raise StepError(f"{self.addresses[path]}: the step has not written it")
        marks = [(store, f"{key}/{UNFINISHED}") for path, (store, key) in self._outputs.items() if path.is_dir()]
        for store, mark in marks:  # no folder is complete before all outputs are
            store.put(mark, b"")
        uploads = []
        for path, (store, key) in self._outputs.items():
            names = [f"/{name}" for name in file_names(path)] if path.is_dir() else [""]
            uploads += [(store, Path(f"{path}{name}"), f"{key}{name}") for name in names]
            earlier = store.list(f"{key}/") if path.is_dir() else [key]
            store.delete_many([each for each in earlier if (store, each) not in marks])
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda upload: upload[0].upload_file(*upload[1:]), uploads))
        for store, mark in marks:
            store.delete(mark)


@contextmanager
def step_files() -> Iterator[StepFiles]:
    """Inputs are local inside the block, outputs are uploaded if it does not raise. Errors give the user's addresses."""
    with tempfile.TemporaryDirectory(prefix="cellsignal-", ignore_cleanup_errors=True) as folder:
        files = StepFiles(Path(folder))
        try:
            yield files
            files.upload()
        except (InputError, StepError) as error:
            message = str(error)
            for path, uri in files.addresses.items():
                message = message.replace(str(path), uri)
            raise type(error)(message) from None


def run_step(
    step: str,
    config: str,
    changes: Sequence[str],
    inputs: Mapping[str, str | Sequence[str]],
    outputs: Mapping[str, str],
    **labels: str | int,
) -> None:
    """Runs a training step's `main` with a configuration; inputs and outputs are addresses by its parameters."""
    settings = RunConfig.load(config, changes).model_dump_json()
    main = import_module(f"components.{step}.step").main  # imports torch, which a wrong configuration need not wait for
    with step_files() as files:
        paths = {
            name: files.input(found) if isinstance(found, str) else [files.input(each) for each in found]
            for name, found in inputs.items()
        }
        main(**paths, **{name: files.output(each) for name, each in outputs.items()}, **labels, config=settings)


@contextmanager
def local_file(uri: str | None) -> Iterator[Path | None]:
    """The file at an address, on this machine inside the block; None if there is no address. Raises as `local_copy`."""
    with step_files() as files:
        yield Path(files.input(uri)) if uri else None


def _local(uri: str) -> Path | None:
    """The path of an artifact on this machine."""
    if is_folder(uri):
        return parse_folder(uri)
    return None if "://" in uri else Path(uri)


def _stored(uri: str) -> tuple[ObjectStore, str]:
    """The store and key of an artifact in a bucket."""
    bucket, key = parse_uri(uri)
    key = key.rstrip("/")
    if not key:
        raise InputError(f"{uri}: names a whole bucket; add a key")
    return ObjectStore(f"s3://{bucket}"), key
