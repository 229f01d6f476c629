"""Finished outputs of a step, kept in the object store under a digest of its inputs, so that no work is done twice.

finished/<step>/<key>/<attempt>/<output>[/<file>]   the upload of one attempt
finished/<step>/<key>/done.json                     written last, and only once: names the attempt that finished first
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import InputError, MissingObjectError, StepError
from components.core.progress import warn
from components.core.storage.digests import digest_file, digest_text, file_names
from components.core.storage.object_store import ObjectStore


class StoredFile(FrozenModel):
    """A file in the store with its size and digest."""

    path: str = Field(description="path below the output's folder; empty if the output is a file")
    size: int = Field(description="bytes")
    sha256: str


class StoredOutput(FrozenModel):
    """One output: a file, or a folder of files."""

    folder: bool
    files: tuple[StoredFile, ...]


class DoneRecord(FrozenModel):
    """The content of done.json."""

    attempt: str = Field(pattern=r"^[0-9a-f]+$")
    outputs: dict[str, StoredOutput]


class DamagedError(Exception):
    """A stored object is missing, or not what its record describes."""


def work_key(step: str, inputs: Mapping[str, str], outputs: Iterable[str]) -> str:
    """The key of a piece of work: a digest of its step, inputs and output names."""
    return digest_text(json.dumps({"step": step, "inputs": dict(inputs), "outputs": sorted(outputs)}, sort_keys=True))


def run_once(
    store: ObjectStore,
    step: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, Path],
    work: Callable[[Mapping[str, Path]], None],
    finished: Callable[[str], None] = lambda _: None,
) -> bool:
    """Brings a step's outputs to their paths: from the store if these inputs were worked on before, else by working.

    Outputs appear complete or not at all, and replace what is at their paths. Runs of the same key side by side are safe:
    the first to finish is recorded, each keeps its own outputs.

    Args:
        store: where finished outputs are kept.
        step: the step's name, part of the key.
        inputs: everything the outputs depend on, as text by name: configuration, digests of inputs and code.
        outputs: path of each output by name; a file or a folder, as `work` makes it.
        work: writes the outputs to the paths it receives (siblings of the final ones, whose parents exist).
        finished: called with the key prefix of the stored outputs, for `fetch_finished`, before they are at their paths.

    Returns:
        True if the outputs came from the store, False if `work` made them.

    Raises:
        StepError: `work` did not write an output, or the store failed.
        InputError: an output's path cannot be written, or the store refuses the credentials.
    """
    prefix = f"finished/{step}/{work_key(step, inputs, outputs)}"
    with _temporary_paths(outputs) as paths:
        damaged: bytes | None = None
        try:
            content = store.get(f"{prefix}/done.json")
        except MissingObjectError:
            pass
        else:
            try:
                _fetch(store, prefix, _parse(content, outputs), paths)
            except DamagedError as damage:
                warn(f"{step}: finished output is damaged in the store ({damage}); working again")
                damaged = content
                _remove(paths.values())
            else:
                finished(prefix)
                _install(paths, outputs)
                return True
        work(paths)
        for name, path in paths.items():
            if not path.exists():
                raise StepError(f"{step}: its output {name!r} was not written")
        _record(store, prefix, paths, damaged)
        finished(prefix)
        _install(paths, outputs)
        return False


def fetch_finished(store: ObjectStore, prefix: str, outputs: Mapping[str, Path]) -> None:
    """Downloads some outputs of a finished step to free paths.

    Args:
        store: where finished outputs are kept.
        prefix: the key prefix that `run_once` reported.
        outputs: path of each requested output by name.

    Raises:
        InputError: they are gone or damaged.
    """
    with _explained(store, prefix):
        _fetch(store, prefix, _parse(store.get(f"{prefix}/done.json"), outputs, some=True), outputs)


def fetch_finished_file(store: ObjectStore, prefix: str, output: str, path: str, target: Path) -> StoredFile:
    """Downloads one file of a finished step's output to a free path; returns its record.

    Args:
        store: where finished outputs are kept.
        prefix: the key prefix that `run_once` reported.
        output: the output's name.
        path: the file's path below the output's folder.
        target: where the file goes.

    Raises:
        InputError: it is gone or damaged.
    """
    with _explained(store, prefix):
        done = _parse(store.get(f"{prefix}/done.json"), [output], some=True)
        for file in done.outputs[output].files:
            if file.path == path:
                download_checked(store, _key(prefix, done.attempt, output, path), file, target)
                return file
        raise DamagedError(f"{output} has no file {path}")


def download_checked(store: ObjectStore, key: str, file: StoredFile, target: Path) -> None:
    """Downloads a file, and compares it with its record.

    Raises:
        DamagedError: it is missing, or has other content.
    """
    try:
        store.download_file(key, target)
    except MissingObjectError:
        raise DamagedError(f"{store.uri(key)} is missing") from None
    if target.stat().st_size != file.size or digest_file(target) != file.sha256:
        raise DamagedError(f"{store.uri(key)} has other content than was written")


@contextmanager
def _explained(store: ObjectStore, prefix: str) -> Iterator[None]:
    """Turns missing and damaged objects into a line for the user."""
    try:
        yield
    except MissingObjectError:
        raise InputError(f"{store.uri(prefix)}: the finished outputs are gone; run the same command again") from None
    except DamagedError as damage:
        raise InputError(
            f"{store.uri(prefix)}: the finished outputs are damaged ({damage}); run the same command again"
        ) from None


def _record(store: ObjectStore, prefix: str, paths: Mapping[str, Path], damaged: bytes | None) -> None:
    """Uploads the outputs as a new attempt, then makes it the finished one unless there is another."""
    attempt = uuid.uuid4().hex
    settled = False
    try:
        outputs = {}
        for name, path in paths.items():
            files = []
            for below in file_names(path) if path.is_dir() else [""]:
                source = path / below
                store.upload_file(source, _key(prefix, attempt, name, below))
                files.append(StoredFile(path=below, size=source.stat().st_size, sha256=digest_file(source)))
            outputs[name] = StoredOutput(folder=path.is_dir(), files=tuple(files))
        if damaged is not None:
            _discard(store, prefix, damaged)
        done = DoneRecord(attempt=attempt, outputs=outputs)
        settled = True  # if the answer is lost, the store may have accepted the record
        settled = store.put_if_absent(f"{prefix}/done.json", done.model_dump_json(indent=1).encode())
    finally:
        if not settled:
            _forget(store, prefix, attempt)


def _discard(store: ObjectStore, prefix: str, damaged: bytes) -> None:
    """Deletes a damaged record and its files, unless another run has replaced it."""
    try:
        if store.get(f"{prefix}/done.json") != damaged:
            return
    except MissingObjectError:
        return
    store.delete(f"{prefix}/done.json")
    try:
        _forget(store, prefix, DoneRecord.model_validate_json(damaged).attempt)
    except ValidationError:
        return  # its attempt is unknown, and stays


def _forget(store: ObjectStore, prefix: str, attempt: str) -> None:
    try:
        store.delete_prefix(f"{prefix}/{attempt}/")
    except (InputError, StepError) as error:
        warn(f"an unused attempt stays in the store ({error})")


def _parse(content: bytes, names: Iterable[str], some: bool = False) -> DoneRecord:
    """The record, which must have these outputs: exactly these, or among others if `some`."""
    try:
        done = DoneRecord.model_validate_json(content)
    except ValidationError:
        raise DamagedError("done.json cannot be read") from None
    names = set(names)
    if not (names <= done.outputs.keys() if some else names == done.outputs.keys()):
        raise DamagedError("done.json names other outputs")
    return done


def _fetch(store: ObjectStore, prefix: str, done: DoneRecord, targets: Mapping[str, Path]) -> None:
    """Downloads and verifies every file of the outputs that have a target."""
    for name in targets:
        output = done.outputs[name]
        if output.folder:
            targets[name].mkdir()
        for file in output.files:
            if file.path.startswith("/") or ".." in PurePosixPath(file.path).parts or output.folder == (not file.path):
                raise DamagedError(f"done.json has an impossible path {file.path!r}")
            target = targets[name] / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            download_checked(store, _key(prefix, done.attempt, name, file.path), file, target)


def _key(prefix: str, attempt: str, name: str, below: str) -> str:
    return "/".join(part for part in (prefix, attempt, name, below) if part)


@contextmanager
def _temporary_paths(outputs: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Hidden paths beside the outputs, on the same file system; what is left there at the end is removed."""
    mark = uuid.uuid4().hex[:8]
    paths = {name: path.with_name(f".{path.name}.{mark}.partial") for name, path in outputs.items()}
    try:
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be created ({error.strerror})") from None
    try:
        yield paths
    finally:
        _remove(paths.values())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _install(paths: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Renames into place; an earlier folder is moved aside first, since a rename does not replace one."""
    for name, path in outputs.items():
        earlier = paths[name].with_suffix(".old")
        if path.is_dir():
            path.rename(earlier)
        paths[name].replace(path)
        _remove([earlier])
