"""cellsignal finish: finds a run's store and key, and starts `python -m pipelines.run.finish`. Imports neither torch nor kfp."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import RunConfig, StoreConfig, parse
from components.core.errors import InputError
from components.core.storage.object_store import parse_uri
from components.core.storage.opening import FOLDER, choose_store, is_folder, join_address, open_existing
from components.core.storage.run_record import RUNS
from pipelines.images.code_version import code_version
from pipelines.run.child import run_child
from pipelines.run.local import JOB


@dataclass(frozen=True)
class KnownRun:
    """Where a run's records are.

    Attributes:
        key: names the run in its store.
        store: bucket and prefix.
        truth: labels that the run was scored with; None where it is not known.
    """

    key: str
    store: StoreConfig
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
        truth = job["truth"]
        if "prediction" in job:
            raise InputError(
                f"{said} {given}: the folder of a prediction, which trains nothing; give that of a training"
            )
        return KnownRun(job["lineage"]["run"], config.store, Path(truth) if truth else None)
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


def run_finish(given: str, quorum: int, out: Path | None, truth: Path | None, store: str | None) -> int:
    """Ends a run from its finished folds; returns the exit code.

    Args:
        given: key, address or folder of the run.
        quorum: folds that every cell type must have.
        out: folder of the results; None for runs/KEY.
        truth: labels of the unlabelled wells; None for those that the run's folder names, if any.
        store: value of --store, for a run given by its key; None for the default.

    Raises:
        InputError: no such run or folder, or an object store that cannot be used.
    """
    run = find_run(given)
    truth = truth or run.truth
    if truth is not None and not truth.is_file():
        raise InputError(f"--truth {truth}: no such file")
    chosen = choose_store(run.store, store) if run.key == given or store else run.store
    open_existing(chosen.bucket, chosen.prefix)
    return run_child(finish_command(chosen, run.key, quorum, out or Path("runs") / run.key, truth))
