"""Finished outputs of a step, kept in the object store under a digest of its inputs, so that no work is done twice.

finished/<step>/<key>/<attempt>/<output>[/<file>]   what one attempt uploaded
finished/<step>/<key>/done.json                     written last, and only once: names the winning attempt
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
from components.core.errors import InputError, StepError
from components.core.progress import warn
from components.core.storage.digests import code_digest, digest_file, digest_path, digest_text, file_names
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.stored_file import DamagedError, StoredFile, download_checked

__all__ = ["code_digest", "digest_path", "fetch_finished", "run_once", "work_key"]


class StoredOutput(FrozenModel):
    """One output: a file, or a folder of files."""

    folder: bool
    files: tuple[StoredFile, ...]


class Finished(FrozenModel):
    """The content of done.json."""

    attempt: str = Field(pattern=r"^[0-9a-f]+$")
    outputs: dict[str, StoredOutput]


def work_key(step: str, inputs: Mapping[str, str], outputs: Iterable[str]) -> str:
    """The name of a piece of work in the store: a digest of its step, inputs and outputs' names."""
    return digest_text(json.dumps({"step": step, "inputs": dict(inputs), "outputs": sorted(outputs)}, sort_keys=True))


def run_once(
    store: ObjectStorage,
    step: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, Path],
    work: Callable[[Mapping[str, Path]], None],
    finished: Callable[[str], None] = lambda _: None,
) -> bool:
    """Brings a step's outputs to their paths: from the store where these inputs were worked on before, else by working.

    Outputs appear whole or not at all, and replace what is at their paths. Runs of the same key side by side are safe:
    the first to finish is recorded, each keeps its own outputs.

    Args:
        store: where finished outputs are kept.
        step: the step's name, part of the key.
        inputs: everything the outputs depend on, as text by name: configuration, digests of inputs and code.
        outputs: where each output goes, by name; a file or a folder, as `work` makes it.
        work: writes the outputs to the paths it is given (siblings of the final ones, whose parents exist).
        finished: hears where the store keeps the outputs, for `fetch_finished`, before they are at their paths.

    Returns:
        True where the outputs came from the store, False where `work` made them.

    Raises:
        StepError: `work` did not write an output, or the store failed.
        InputError: an output's path cannot be written, or the store refuses the credentials.
    """
    place = f"finished/{step}/{work_key(step, inputs, outputs)}"
    with _siblings(outputs) as temporaries:
        damaged: bytes | None = None
        try:
            record = store.get(f"{place}/done.json")
        except MissingObjectError:
            pass
        else:
            try:
                _fetch(store, place, _parse(record, set(outputs)), temporaries)
            except DamagedError as damage:
                warn(f"{step}: finished output is damaged in the store ({damage}); working again")
                damaged = record
                _remove(temporaries)
            else:
                finished(place)
                _install(temporaries, outputs)
                return True
        work(temporaries)
        for name, path in temporaries.items():
            if not path.exists():
                raise StepError(f"{step}: its output {name!r} was not written")
        _record(store, place, temporaries, damaged)
        finished(place)
        _install(temporaries, outputs)
        return False


def fetch_finished(store: ObjectStorage, place: str, outputs: Mapping[str, Path]) -> None:
    """Brings some outputs of a finished step to paths that are free.

    Args:
        store: where finished outputs are kept.
        place: what `run_once` told its `finished`.
        outputs: where each wanted output goes, by name.

    Raises:
        InputError: they are gone or damaged.
    """
    with _whole(store, place):
        _fetch(store, place, _parse(store.get(f"{place}/done.json"), set(outputs), some=True), outputs)


def fetch_finished_file(store: ObjectStorage, place: str, output: str, path: str, target: Path) -> StoredFile:
    """Brings one file of a finished step's output to a path that is free; returns what is known of it.

    Args:
        store: where finished outputs are kept.
        place: what `run_once` told its `finished`.
        output: its name.
        path: of the file below the output's folder.
        target: where the file goes.

    Raises:
        InputError: it is gone or damaged.
    """
    with _whole(store, place):
        done = _parse(store.get(f"{place}/done.json"), {output}, some=True)
        for file in done.outputs[output].files:
            if file.path == path:
                download_checked(store, _object(place, done.attempt, output, path), file, target)
                return file
        raise DamagedError(f"{output} has no file {path}")


@contextmanager
def _whole(store: ObjectStorage, place: str) -> Iterator[None]:
    """Tells the user of finished outputs that are not there as they were written."""
    try:
        yield
    except MissingObjectError:
        raise InputError(f"{store.uri(place)}: the finished outputs are gone; run the same command again") from None
    except DamagedError as damage:
        raise InputError(
            f"{store.uri(place)}: the finished outputs are damaged ({damage}); run the same command again"
        ) from None


def _record(store: ObjectStorage, place: str, made: Mapping[str, Path], damaged: bytes | None) -> None:
    """Uploads under a name of this attempt, then makes it the finished one unless another attempt is."""
    attempt = uuid.uuid4().hex
    lost = False
    recording = False
    try:
        described = {}
        for name, path in made.items():
            files = []
            for below in file_names(path) if path.is_dir() else [""]:
                source = path / below
                store.upload_file(source, _object(place, attempt, name, below))
                files.append(StoredFile(path=below, size=source.stat().st_size, sha256=digest_file(source)))
            described[name] = StoredOutput(folder=path.is_dir(), files=tuple(files))
        if damaged is not None:
            _discard(store, place, damaged)
        done = Finished(attempt=attempt, outputs=described)
        recording = True
        lost = not store.put_if_absent(f"{place}/done.json", done.model_dump_json(indent=1).encode())
    finally:
        # Where the answer to the record was lost, the store may have taken it: `store gc` tells.
        if lost or not recording:
            _forget(store, place, attempt)


def _discard(store: ObjectStorage, place: str, damaged: bytes) -> None:
    """Deletes a damaged record and its files, unless another run has replaced it meanwhile."""
    try:
        if store.get(f"{place}/done.json") != damaged:
            return
    except MissingObjectError:
        return
    store.delete(f"{place}/done.json")
    try:
        _forget(store, place, Finished.model_validate_json(damaged).attempt)
    except ValidationError:
        return  # nobody can tell any more which attempt it was; `store gc` finds it


def _forget(store: ObjectStorage, place: str, attempt: str) -> None:
    try:
        store.delete_prefix(f"{place}/{attempt}/")
    except (InputError, StepError) as error:
        warn(f"an unused attempt stays in the store ({error})")


def _parse(record: bytes, names: set[str], some: bool = False) -> Finished:
    try:
        done = Finished.model_validate_json(record)
    except ValidationError:
        raise DamagedError("done.json cannot be read") from None
    if not names <= done.outputs.keys() or (len(names) < len(done.outputs) and not some):
        raise DamagedError("done.json names other outputs")
    return done


def _fetch(store: ObjectStorage, place: str, done: Finished, targets: Mapping[str, Path]) -> None:
    """Downloads every file of the outputs that have a target, and verifies it."""
    for name in targets:
        output = done.outputs[name]
        if output.folder:
            targets[name].mkdir()
        for file in output.files:
            if file.path.startswith("/") or ".." in PurePosixPath(file.path).parts or output.folder == (not file.path):
                raise DamagedError(f"done.json has an impossible path {file.path!r}")
            target = targets[name] / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            download_checked(store, _object(place, done.attempt, name, file.path), file, target)


def _object(place: str, attempt: str, name: str, below: str) -> str:
    return "/".join(part for part in (place, attempt, name, below) if part)


@contextmanager
def _siblings(outputs: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Temporary paths beside the outputs, on the same file system; whatever is left there at the end is removed."""
    mark = uuid.uuid4().hex[:8]
    temporaries = {name: path.with_name(f".{path.name}.{mark}.partial") for name, path in outputs.items()}
    try:
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be made ({error.strerror})") from None
    try:
        yield temporaries
    finally:
        _remove(temporaries)


def _remove(paths: Mapping[str, Path]) -> None:
    for path in paths.values():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _install(made: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Renames into place; a folder in the way is moved aside first, since no rename replaces one."""
    for name, path in outputs.items():
        aside = {name: made[name].with_suffix(".old")}
        if path.is_dir():
            path.rename(aside[name])
        made[name].replace(path)
        _remove(aside)
