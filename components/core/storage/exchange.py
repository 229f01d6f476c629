"""Artifacts by address, as steps read and write them without KFP: a path, file://, s3:// or minio:// (as KFP writes it).

`local_copy` brings inputs to this machine. `exchange` also delivers outputs, for a step started by hand or as a Kubernetes Job.
An output in object storage is complete or refused: a folder has the object `.unfinished` while it is being written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError, StepError
from components.core.files import atomic_directory
from components.core.storage.digests import digest_text, file_names
from components.core.storage.opening import is_bucket, is_folder, open_store
from components.core.storage.run_records import OPTION, run_address

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

UNFINISHED = ".unfinished"
SMALL = 8 * 2**20
"""Bytes up to which files are sent many at a time, from memory."""


def local_copy(uri: str, into: Path) -> Path:
    """The artifact as a local file or folder.

    Args:
        uri: a local path, `file://`, `s3://bucket/key` or `minio://bucket/key`; the key is an object or a folder.
        into: a folder for copies, created if missing. Artifacts of the same name do not overwrite each other.

    Returns:
        A local artifact's own path; for a stored one the path of its complete copy below `into`.

    Raises:
        InputError: nothing is there, it is unfinished, the address is of another kind, or the copy cannot be written.
        StepError: the store failed.
    """
    if is_folder(uri) or "://" not in uri:
        path = Path(unquote(urlsplit(uri).path)) if is_folder(uri) else Path(uri)
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
            for each in below:
                name = each[len(key) + 1 :]
                if ".." in PurePosixPath(name).parts or name.startswith("/"):
                    raise InputError(f"{store.uri(each)}: its name leads out of the folder; rename it")
                copy = folder / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                store.download_file(each, copy)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def source_store(own: ObjectStore, init_from: str) -> tuple[ObjectStore, str]:
    """The store and the key of the run that another starts from.

    Args:
        own: the store of a run given by its key alone; not used for an address.
        init_from: a key, or s3://BUCKET[/PREFIX]/runs/KEY or file:///FOLDER/runs/KEY.

    Raises:
        InputError: neither, or no credentials in the environment for a bucket.
    """
    try:
        address, key = run_address(init_from)
    except InputError as error:
        folder = "; `cellsignal run` also takes its folder" if Path(init_from).is_dir() else ""
        raise InputError(f"{OPTION}: {error}{folder}") from None
    return (open_store(address) if address else own), key


@contextmanager
def local_file(uri: str | None) -> Iterator[Path | None]:
    """The file at an address, on this machine inside the block; None if there is no address.

    Raises:
        InputError: as local_copy.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        yield local_copy(uri, Path(folder)) if uri else None


class Exchange:
    """Local paths of a step's inputs and outputs that the user gave by address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._addresses: dict[Path, str] = {}
        self._outputs: list[_Output] = []

    def input(self, uri: str) -> str:
        """The local path of an input, downloaded if it is in object storage.

        Raises:
            InputError: nothing is there, it is unfinished, or the address is of another kind.
            StepError: the store failed.
        """
        path = local_copy(uri, self._folder / "inputs")
        self._addresses[path] = uri
        return str(path)

    def output(self, uri: str) -> str:
        """The local path where a step writes an output, which is delivered to its address at the end.

        Raises:
            InputError: an address of another kind, a whole bucket, or a store that cannot be used.
        """
        if is_folder(uri):
            return unquote(urlsplit(uri).path)
        if not is_bucket(uri):
            if "://" in uri:
                raise InputError(f"{uri}: an output goes to a path, file:// or s3://BUCKET/KEY")
            return uri
        store, key = _stored(uri, "a key for the output")
        if not any(output.store.bucket == store.bucket for output in self._outputs):
            store.check("create it, or correct the output's address")  # before the work, not after it
        path = self._folder / "outputs" / digest_text(uri)[:12] / key.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._addresses[path] = uri
        self._outputs.append(_Output(store, key, path))
        return str(path)

    def deliver(self) -> None:
        """Uploads the outputs, all or none.

        Raises:
            StepError: an output was not written, or the store failed.
        """
        for output in self._outputs:
            if not output.path.exists():
                raise StepError(f"{self._addresses[output.path]}: the step has not written it")
        begun: list[_Output] = []
        try:
            for output in self._outputs:
                begun.append(output)
                output.begin()
            for output in self._outputs:
                output.write()
            for output in self._outputs:
                output.end()
        except BaseException:
            for output in begun:
                output.take_back()
            raise

    def with_addresses(self, message: str) -> str:
        """A message with the user's addresses in place of temporary paths."""
        for path, uri in self._addresses.items():
            message = message.replace(str(path), uri)
        return message


@contextmanager
def exchange() -> Iterator[Exchange]:
    """Inputs are local inside the block; when it ends without an error, outputs are delivered.

    Errors name the user's addresses.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-", ignore_cleanup_errors=True) as folder:
        paths = Exchange(Path(folder))
        try:
            yield paths
            paths.deliver()
        except (InputError, StepError) as error:
            raise type(error)(paths.with_addresses(str(error))) from None


@dataclass(frozen=True)
class _Output:
    store: ObjectStore
    key: str
    path: Path

    @property
    def _mark(self) -> str:
        return f"{self.key}/{UNFINISHED}"

    def begin(self) -> None:
        """Marks a folder as unfinished, and removes what was there."""
        if self.path.is_dir():
            self.store.put(self._mark, b"")
            self._clear()

    def write(self) -> None:
        if not self.path.is_dir():
            self.store.upload_file(self.path, self.key)
            return
        files = {name: self.path / name for name in file_names(self.path)}
        small = {name: file for name, file in files.items() if file.stat().st_size <= SMALL}
        self.store.put_many((f"{self.key}/{name}", file.read_bytes()) for name, file in small.items())
        for name in files.keys() - small.keys():
            self.store.upload_file(files[name], f"{self.key}/{name}")

    def end(self) -> None:
        if self.path.is_dir():
            self.store.delete(self._mark)

    def take_back(self) -> None:
        """Removes the output; if the store fails, the mark stays and the folder is refused."""
        try:
            if self.path.is_dir():
                self._clear()
                self.store.delete(self._mark)
            else:
                self.store.delete(self.key)
        except (InputError, StepError):
            return  # the caller reports the error that led here

    def _clear(self) -> None:
        self.store.delete_many([key for key in self.store.list(f"{self.key}/") if key != self._mark])


def _stored(uri: str, lacking: str) -> tuple[ObjectStore, str]:
    """The store and key of an artifact in a bucket."""
    from components.core.storage.object_store import ObjectStore, parse_uri

    bucket, key = parse_uri(uri)
    key = key.rstrip("/")
    if not key:
        raise InputError(f"{uri}: names a whole bucket; add {lacking}")
    return ObjectStore(bucket), key
