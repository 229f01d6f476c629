"""Finished outputs of a step, kept in the object store under a digest of its inputs, so that no work is done twice.

finished/<step>/<key>/<attempt>/<output>[/<file>]   the upload of one attempt
finished/<step>/<key>/done.json                     written last: names the attempt that finished first
checkpoints/<step>/<key>/latest.pt                  state of an unfinished step; see core.learning.checkpoints
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import InputError, MissingObjectError, StepError
from components.core.files import atomic_path
from components.core.progress import warn
from components.core.storage.digests import digest_file, digest_text, file_names

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

EMBEDDINGS = "embeddings"
"""An output of the predicting steps, and the folder of embeddings among a run's results."""


class StoredFile(FrozenModel):
    """A file in the store with its size and digest."""

    path: str = Field(description="path below the prefix of what the file belongs to")
    size: int = Field(description="bytes")
    sha256: str


class DoneRecord(FrozenModel):
    """The content of done.json."""

    attempt: str = Field(pattern=r"^[0-9a-f]+$")
    outputs: tuple[str, ...] = Field(description="names; an output is a folder unless its name is the path of a file")
    files: tuple[StoredFile, ...] = Field(description="files of all outputs, OUTPUT or OUTPUT/FILE")


class DamagedError(Exception):
    """A stored object is missing, or not what its record describes."""


class Sphering(NamedTuple):
    """A cheap change of a step's finished embeddings, which are kept besides, so that another one starts from there."""

    inputs: Mapping[str, str]  # what it depends on besides those embeddings, as text by name
    work: Callable[[Path, Path], None]  # reads the folder of embeddings, and writes another one


def work_key(step: str, inputs: Mapping[str, str], outputs: Iterable[str]) -> str:
    """The key of a piece of work: a digest of its step, inputs and output names."""
    return digest_text(json.dumps({"step": step, "inputs": dict(inputs), "outputs": sorted(outputs)}, sort_keys=True))


def run_once(
    store: ObjectStore,
    step: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, Path],
    work: Callable[[Mapping[str, Path]], None],
) -> str:
    """Puts a step's outputs at their paths: from the store if these inputs were worked on before, else by working.

    Outputs appear complete or not at all, and replace what is at their paths. Runs of the same key side by side are safe:
    the first to finish is recorded, each keeps its own outputs.

    Args:
        store: where finished outputs are kept.
        step: the step's name, part of the key.
        inputs: everything the outputs depend on, as text by name: configuration, digests of inputs and code.
        outputs: path of each output by name; a file or a folder, as `work` makes it.
        work: writes the outputs to the paths it receives, which are free; StepError if it leaves one out.

    Returns:
        The key prefix of the stored outputs, for `fetch_finished`.
    """
    prefix = f"finished/{step}/{work_key(step, inputs, outputs)}"
    damaged = ""  # version of a record that cannot be used
    try:
        record, damaged = store.get_versioned(f"{prefix}/done.json")
        with _atomic_paths(outputs) as paths:
            _fetch(store, prefix, record, paths)
    except MissingObjectError:
        pass
    except DamagedError as damage:
        warn(f"{step}: finished output is damaged in the store ({damage}); working again")
    else:
        return prefix
    with _atomic_paths(outputs) as paths:
        work(paths)
        for name, path in paths.items():
            if not path.exists():
                raise StepError(f"{step}: its output {name!r} was not written")
        _record(store, prefix, paths, damaged)
    return prefix


def fetch_finished(store: ObjectStore, prefix: str, targets: Mapping[str, Path]) -> list[StoredFile]:
    """Downloads outputs of a finished step to free paths; returns the records of their files.

    `prefix` comes from `run_once`; `targets` are paths by name of an output, or by OUTPUT/FILE. InputError if they are gone or
    damaged.
    """
    try:
        return _fetch(store, prefix, store.get(f"{prefix}/done.json"), targets)
    except MissingObjectError:
        problem = "gone"
    except DamagedError as damage:
        problem = f"damaged ({damage})"
    raise InputError(f"{store.uri(prefix)}: the finished outputs are {problem}; run the same command again")


def write_attempt(store: ObjectStore, prefix: str, key: str, version: str, upload: Callable[[str], bytes]) -> str:
    """Uploads files as a new attempt, then records it, unless another attempt was recorded in the meantime.

    Args:
        store: receives both.
        prefix: key prefix of all attempts.
        key: the record's.
        version: of a record that is to be replaced; empty if there is none.
        upload: uploads below PREFIX/ATTEMPT for the attempt that it receives, and returns the record.

    Returns:
        The attempt; empty if another one counts, and this one's files are removed.
    """
    attempt, recorded = uuid.uuid4().hex, False
    try:
        content = upload(attempt)
        recorded = True  # if the answer is lost, the store may have accepted the record
        replaced = bool(version) and store.put_if_version(key, content, version)
        recorded = replaced or store.put_if_version(key, content)
    finally:
        if not recorded:
            try:
                store.delete_prefix(f"{prefix}/{attempt}/")
            except (InputError, StepError) as error:
                warn(f"an unused attempt stays in the store ({error})")
    return attempt if recorded else ""


def download_checked(store: ObjectStore, key: str, file: StoredFile, target: Path) -> None:
    """Downloads a file, and compares it with its record; DamagedError if it is missing or differs."""
    try:
        store.download_file(key, target)
    except MissingObjectError:
        raise DamagedError(f"{store.uri(key)} is missing") from None
    if target.stat().st_size != file.size or digest_file(target) != file.sha256:
        raise DamagedError(f"{store.uri(key)} has other content than was written")


def _fetch(store: ObjectStore, prefix: str, record: bytes, targets: Mapping[str, Path]) -> list[StoredFile]:
    """As fetch_finished, by the content of done.json; raises DamagedError."""
    try:
        done = DoneRecord.model_validate_json(record)
    except ValidationError:
        raise DamagedError("done.json cannot be read") from None
    fetched = []
    for name, target in targets.items():
        files = [file for file in done.files if file.path == name or file.path.startswith(f"{name}/")]
        if not files:
            if name not in done.outputs:
                raise DamagedError(f"done.json has no {name}")
            target.mkdir()
        for file in files:
            if ".." in PurePosixPath(file.path).parts:
                raise DamagedError(f"done.json has an impossible path {file.path!r}")
            path = target / file.path[len(name) :].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            download_checked(store, f"{prefix}/{done.attempt}/{file.path}", file, path)
        fetched += files
    return fetched


def _record(store: ObjectStore, prefix: str, paths: Mapping[str, Path], damaged: str) -> None:
    """Uploads the outputs as a new attempt, which replaces a damaged one."""

    def upload(attempt: str) -> bytes:
        files = []
        for name, path in paths.items():
            for below in file_names(path) if path.is_dir() else [""]:
                source, stored = path / below, f"{name}/{below}".rstrip("/")
                store.upload_file(source, f"{prefix}/{attempt}/{stored}")
                files.append(StoredFile(path=stored, size=source.stat().st_size, sha256=digest_file(source)))
        return DoneRecord(attempt=attempt, outputs=tuple(paths), files=tuple(files)).model_dump_json(indent=1).encode()

    key = f"{prefix}/done.json"
    attempt = write_attempt(store, prefix, key, damaged, upload)
    if attempt and damaged:  # whose files would stay as long as a run needs this key
        with suppress(InputError, StepError):
            older = [each for each in store.list(f"{prefix}/") if not each.startswith((key, f"{prefix}/{attempt}/"))]
            store.delete_many(older)


@contextmanager
def _atomic_paths(outputs: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """As `atomic_path`, for several outputs."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(atomic_path(path)) for name, path in outputs.items()}
