"""cellsignal finish: finds a run's store and key, and starts `python -m pipelines.run.finish`. Imports neither torch nor kfp."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig, StoreConfig, parse
from components.core.errors import InputError
from components.core.storage.object_store import parse_uri
from components.core.storage.opening import FOLDER, is_folder, join_address, open_existing
from components.core.storage.run_record import RUNS
from pipelines.images.code_version import code_version
from pipelines.run.child import run_child
from pipelines.run.local import JOB, storage


@dataclass(frozen=True)
class KnownRun:
    """Where a run's records are.

    Attributes:
        key: names the run in its store.
        store: bucket and prefix.
        store_dir: data of the embedded store; None where it is not known.
        truth: labels that the run was scored with; None where it is not known.
    """

    key: str
    store: StoreConfig
    store_dir: Path | None = None
    truth: Path | None = None


def find_run(given: str, said: str = "--run") -> KnownRun:
    """A run by its key, its address in an object store, or the folder of `cellsignal run --out`.

    Args:
        given: any of these.
        said: what the user gave it as, for errors.

    Raises:
        InputError: a folder without a run or with a prediction, or an address that is no run's.
    """
    if "://" in given:
        address = given.rstrip("/")
        bucket, path = ("", address.removeprefix(FOLDER)) if is_folder(address) else parse_uri(address)
        *prefix, runs, key = ["", *path.split("/")]
        if runs != RUNS:
            raise InputError(
                f"{said} {given}: an address looks like s3://BUCKET[/PREFIX]/{RUNS}/KEY or file:///FOLDER/{RUNS}/KEY"
            )
        if is_folder(address):
            return KnownRun(key, StoreConfig(bucket=FOLDER + "/".join(prefix)[1:]))
        return KnownRun(key, StoreConfig(bucket=bucket, prefix="/".join(part for part in prefix if part)))
    folder = Path(given)
    if not folder.is_dir():
        if "/" in given:
            raise InputError(f"{said} {given}: neither a key nor a folder of a run")
        return KnownRun(given, StoreConfig())
    path = folder / "run" / JOB
    try:
        job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = parse(RunConfig, job["config"], source=str(path))
        store, truth = job["store"], job["truth"]
        if "prediction" in job:
            raise InputError(
                f"{said} {given}: the folder of a prediction, which trains nothing; give that of a training"
            )
        return KnownRun(
            job["lineage"]["run"], config.store, Path(store) if store else None, Path(truth) if truth else None
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{said} {given}: not the folder of a run that got as far as its steps") from None


def finish_command(store: StoreConfig, key: str, quorum: int, out: Path, truth: Path | None) -> list[str]:
    """What `run_child` takes to end a run from its finished folds.

    Args:
        store: of the run.
        key: of the run.
        quorum: folds that every cell type must have.
        out: folder of the results.
        truth: labels of the unlabelled wells; None for none.
    """
    command = ["-m", "pipelines.run.finish", "--store", join_address(store.bucket, store.prefix)]
    command += ["--run", key, "--quorum", str(quorum), "--out", str(out), "--code-version", code_version()]
    return command if truth is None else [*command, "--truth", str(truth)]


def run_finish(
    given: str, quorum: int, out: Path | None, truth: Path | None, store_dir: Path | None, console: Console
) -> int:
    """Ends a run from its finished folds; returns the exit code.

    Args:
        given: key, address or folder of the run.
        quorum: folds that every cell type must have.
        out: folder of the results; None for runs/KEY.
        truth: labels of the unlabelled wells; None for those that the run's folder names, if any.
        store_dir: data of the embedded object store; None for the run's own or the user's cache folder.
        console: where warnings are shown.

    Raises:
        InputError: no such run or folder, or an object store that cannot be used.
    """
    run = find_run(given)
    truth = truth or run.truth
    if truth is not None and not truth.is_file():
        raise InputError(f"--truth {truth}: no such file")
    if is_folder(run.store.bucket):
        open_existing(run.store.bucket)  # or one that was mistyped would be made
    folder = store_dir or run.store_dir
    embedded = not is_folder(run.store.bucket) and not os.environ.get("AWS_ENDPOINT_URL")
    if folder is not None and not folder.is_dir() and embedded:
        raise InputError(f"--store {folder}: no such folder; the run is not there")
    command = finish_command(run.store, run.key, quorum, out or Path("runs") / run.key, truth)
    with storage(run.store, folder, console) as environment:
        return run_child(command, environment)
