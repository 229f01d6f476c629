"""A run that was started before, found by its key, address or folder: to finish it, or to start another one from its weights.

Imports neither torch nor kfp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import RunConfig, StoreConfig, parse
from components.core.errors import InputError
from components.core.storage.object_store import parse_uri
from components.core.storage.opening import FOLDER, choose_store, is_folder, join_address, open_existing
from components.core.storage.runs import OPTION, RUNS
from pipelines.images.code_version import code_version
from pipelines.run.folder import JOB
from pipelines.run.process import run_child


@dataclass(frozen=True)
class KnownRun:
    """Where a run's records are.

    Attributes:
        key: the run's key in its store.
        store: bucket and prefix.
        truth: labels that the run was scored with; None if not known.
    """

    key: str
    store: StoreConfig
    truth: Path | None = None


def find_run(name: str, option: str = "--run") -> KnownRun:
    """A run by its key, its address in an object store, or the folder of `cellsignal run --out`.

    Args:
        name: any of these.
        option: the option that gives it, for errors.

    Raises:
        InputError: a folder without a run or with a prediction, or an address that is no run's.
    """
    if "://" in name:
        address = name.rstrip("/")
        bucket, path = ("", address.removeprefix(FOLDER)) if is_folder(address) else parse_uri(address)
        *prefix, runs, key = ["", *path.split("/")]
        if runs != RUNS:
            raise InputError(
                f"{option} {name}: an address looks like s3://BUCKET[/PREFIX]/{RUNS}/KEY or file:///FOLDER/{RUNS}/KEY"
            )
        if is_folder(address):
            return KnownRun(key, StoreConfig(bucket=FOLDER + "/".join(prefix)[1:]))
        return KnownRun(key, StoreConfig(bucket=bucket, prefix="/".join(part for part in prefix if part)))
    folder = Path(name)
    if not folder.is_dir():
        if "/" in name:
            raise InputError(f"{option} {name}: neither a key nor a folder of a run")
        return KnownRun(name, StoreConfig())
    file = folder / "run" / JOB
    try:
        if not file.is_file():
            raise FileNotFoundError
        job: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config = parse(RunConfig, job["config"], source=str(file))
        truth = job["truth"]
        if job.get("prediction"):
            raise InputError(
                f"{option} {name}: the folder of a prediction, which trains nothing; give that of a training"
            )
        return KnownRun(job["lineage"]["run"], config.store, Path(truth) if truth else None)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{option} {name}: not the folder of a run that got as far as its steps") from None


def finish_command(store: StoreConfig, key: str, quorum: int, out: Path, truth: Path | None) -> list[str]:
    """The arguments of `run_child` that end a run from its finished folds.

    Args:
        store: the run's store.
        key: the run's key.
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


def with_address(config: RunConfig) -> RunConfig:
    """The configuration with the address of the run in init_from, if that is the run's folder.

    Raises:
        InputError: not a run's folder.
    """
    if not config.init_from or "://" in config.init_from:
        return config
    folder = Path(config.init_from)
    if not folder.is_dir() and "/" not in config.init_from:
        return config
    try:
        found = find_run(config.init_from)
    except InputError as error:
        raise InputError(f"{OPTION}: {str(error).removeprefix('--run ')}") from None
    address = join_address(found.store.bucket, found.store.prefix)
    return config.model_copy(update={"init_from": f"{address}/{RUNS}/{found.key}"})
