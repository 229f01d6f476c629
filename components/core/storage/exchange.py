"""Inputs and outputs of a step by hand, wherever they lie: paths, file:// or s3://. What a Kubernetes Job without KFP goes by.

An output in object storage appears whole or not at all: a folder carries the object `.unfinished` while it is written, and
`local_copy` refuses a folder that has one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError, StepError
from components.core.storage.artifacts import UNFINISHED, local_copy
from components.core.storage.digests import digest_text, file_names
from components.core.storage.opening import is_bucket, is_folder

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

SMALL = 8 * 2**20
"""Bytes up to which files are sent many at a time, from memory."""


class Exchange:
    """Where a step reads and writes on this machine, for what its user named by address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._addresses: dict[Path, str] = {}
        self._outputs: list[_Output] = []

    def input(self, uri: str) -> str:
        """The local path of an input, fetched where it lies in object storage.

        Raises:
            InputError: nothing is there, it is not whole, or the address is of another kind.
            StepError: the store failed.
        """
        path = local_copy(uri, self._folder / "inputs")
        self._addresses[path] = uri
        return str(path)

    def output(self, uri: str) -> str:
        """The local path where a step writes an output, which goes to its address at the end.

        Raises:
            InputError: an address of another kind, a whole bucket, or a store that cannot be used.
        """
        if is_folder(uri):
            return unquote(urlsplit(uri).path)
        if not is_bucket(uri):
            if "://" in uri:
                raise InputError(f"{uri}: an output goes to a path, file:// or s3://BUCKET/KEY")
            return uri
        from components.core.storage.object_store import ObjectStore, parse_uri

        bucket, key = parse_uri(uri)
        key = key.rstrip("/")
        if not key:
            raise InputError(f"{uri}: names a whole bucket; add a key for the output")
        store = ObjectStore.connect(bucket)
        if not any(output.store.bucket == bucket for output in self._outputs):
            store.check("create it, or correct the output's address")  # before the work, not after it
        path = self._folder / "outputs" / digest_text(uri)[:12] / key.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._addresses[path] = uri
        self._outputs.append(_Output(store, key, path))
        return str(path)

    def deliver(self) -> None:
        """Brings the outputs to their addresses, all or none.

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

    def told(self, message: str) -> str:
        """A message with the addresses that the user gave in place of paths of this machine."""
        for path, uri in self._addresses.items():
            message = message.replace(str(path), uri)
        return message


@dataclass(frozen=True)
class _Output:
    store: ObjectStore
    key: str
    path: Path

    @property
    def _mark(self) -> str:
        return f"{self.key}/{UNFINISHED}"

    def begin(self) -> None:
        """From now on nobody takes the folder for a whole one; what was there goes."""
        if not self.path.is_dir():
            return
        self.store.put(self._mark, b"")
        self.store.delete_many([key for key in self.store.list(f"{self.key}/") if key != self._mark])

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
        """The mark goes last. A store that fails keeps it, and with it the folder is refused."""
        try:
            if self.path.is_dir():
                self.store.delete_many([key for key in self.store.list(f"{self.key}/") if key != self._mark])
                self.store.delete(self._mark)
            else:
                self.store.delete(self.key)
        except (InputError, StepError):
            return  # the error that led here is the one to tell


@contextmanager
def exchange() -> Iterator[Exchange]:
    """Inputs are here while the block lasts; when it ends well, outputs are where they belong.

    Errors name what the user named.
    """
    folder = Path(tempfile.mkdtemp(prefix="cellsignal-"))
    given = Exchange(folder)
    try:
        yield given
        given.deliver()
    except (InputError, StepError) as error:
        raise type(error)(given.told(str(error))) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
