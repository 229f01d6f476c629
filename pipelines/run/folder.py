"""The folder of a run on this machine: its lock, its configuration, its results, and how a later command finds the run.

OUT/<results>           files of the report, and embeddings
OUT/run/run.json        what the folder's run is: configuration, screen, truth
OUT/run/job.json        what the worker process runs
OUT/run/config.yaml     the configuration
OUT/run/events.jsonl    progress of the tasks of the last start
OUT/run/log.txt         what tasks print, of all starts
OUT/run/kfp             artifacts of the last start
OUT/run/tmp             temporary files, removed at the end
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import NO_EFFECT_ON_RESULTS, RunConfig, StoreConfig, first_difference, parse
from components.core.errors import InputError, StepError
from components.core.files import atomic_directory, locked, write_atomically
from components.core.progress import finished_tasks
from components.core.storage.object_store import parse_uri
from components.core.storage.opening import FOLDER, is_folder, join_address, whole_address
from components.core.storage.run_records import OPTION, RUNS

RESULTS = (
    "predictions.csv",
    "predictions_oof.csv",
    "predictions_holdout.csv",
    "qc.csv",
    "metrics.json",
    "report.html",
    "config.yaml",
    "lineage.json",
)
"""Files of the report; a training has no qc.csv, and new plates have predictions.csv alone."""
EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class RunFolder:
    """An opened folder.

    Attributes:
        out: folder of the results.
        work: its working folder, OUT/run, absolute.
    """

    out: Path
    work: Path

    @property
    def job(self) -> Path:
        """What the worker process runs."""
        return self.work / "job.json"

    @property
    def events(self) -> Path:
        """Progress of the tasks."""
        return self.work / "events.jsonl"

    @property
    def log(self) -> Path:
        """What tasks print."""
        return self.work / "log.txt"

    @property
    def tmp(self) -> Path:
        """Temporary files of tasks: beside the artifacts, since a checkpoint should not lie in memory as /tmp may."""
        return self.work / "tmp"

    @property
    def simulated(self) -> Path:
        """The simulated screen, and truth.csv beside it."""
        return self.work / "simulated"

    @property
    def artifacts(self) -> Path:
        """The tasks' artifacts, written by kfp.local."""
        return self.work / "kfp"

    def has_results(self) -> bool:
        """Whether a run in this folder got as far as a report."""
        return (self.out / "report.html").exists()

    def has_finished_tasks(self) -> bool:
        """Whether a task of the DAG finished here, or a report is there."""
        return self.has_results() or any(task["step"] != "simulate" for task in finished_tasks(self.events))


@contextlib.contextmanager
def opened_folder(
    out: Path,
    config: RunConfig,
    screen: str | None,
    truth: Path | None,
    prediction: Mapping[str, Any] | None = None,
) -> Iterator[RunFolder]:
    """Locks the folder of a run for this process.

    Bad input leaves no folder, unless a training has finished a task in it, or a prediction has results.

    Args:
        out: folder of the results.
        config: the run's configuration.
        screen: its screen; None if it is simulated.
        truth: its labels.
        prediction: parameters of a prediction; None for a training.

    Raises:
        InputError: the folder cannot be written, is in use, or holds something else.
    """
    described = {
        "config": json.loads(config.model_dump_json()),
        "screen": whole_address(screen) if screen else None,
        "truth": str(truth.resolve()) if truth else None,
        **(prediction or {}),
    }
    # kfp.local replaces this word in every argument of a task by the interpreter's path.
    for path in (str(out.resolve()), described["screen"] or "", described["truth"] or ""):
        if "python3" in path:
            raise InputError(f"{path}: kfp.local cannot take a path with 'python3' in it; use another folder name")
    folder = RunFolder(out, (out / "run").resolve())
    with contextlib.ExitStack() as held:
        try:
            if out.exists() and not folder.work.is_dir() and any(out.iterdir()):
                raise InputError(f"--out {out}: not empty, and not a run; use a new folder")
            folder.work.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder.work / "lock", wait=False))
            _describe(folder, described)
            write_atomically(folder.work / "config.yaml", config.dump())
            for path in (folder.events, folder.log):
                if path.exists() and not path.is_file():
                    raise InputError(f"{path}: is not a file; remove it, or use a new folder")
        except BlockingIOError:
            raise InputError(
                f"--out {out}: another run is working in this folder; wait for it or use another"
            ) from None
        try:
            yield folder
        except InputError:
            if not (folder.has_results() if prediction else folder.has_finished_tasks()):
                shutil.rmtree(folder.work)
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise


def _describe(folder: RunFolder, described: dict[str, Any]) -> None:
    """Records what the folder's run is; refuses another run once a task has finished."""
    path = folder.work / "run.json"
    if path.exists():
        changed = first_difference(_result_part(_read(path, folder.out)), _result_part(described))
        if changed and folder.has_finished_tasks():
            raise InputError(
                f"--out {folder.out}: holds a run with another {changed}; use a new folder, or the same settings"
            )
        if changed:
            # Nothing was computed with the earlier settings, so there is nothing to protect.
            shutil.rmtree(folder.simulated, ignore_errors=True)
    write_atomically(path, json.dumps(described, indent=1))


def _read(path: Path, out: Path) -> dict[str, Any]:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {**earlier, "config": dict(earlier["config"])}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--out {out}: {path} is damaged, so its run is not known; use a new folder") from None


def _result_part(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description without the sections that may change before a run resumes."""
    kept = {name: section for name, section in described["config"].items() if name not in NO_EFFECT_ON_RESULTS}
    return {**described, "config": kept}


def collect_results(folder: RunFolder) -> None:
    """Puts the report step's files into the results folder, each atomically, and the folds' embeddings beside them.

    lineage.json gets the duration of each task, and the paths of the embeddings.

    Raises:
        StepError: the report left no results.
        OSError: they cannot be written.
    """
    found = sorted(folder.artifacts.glob("*/report/**/results"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise StepError(f"the report step left no results under {folder.artifacts}")
    parts = [
        part
        for part in sorted(folder.artifacts.glob(f"*/*/**/{EMBEDDINGS}"))
        if EMBEDDINGS not in part.relative_to(folder.artifacts).parts[:-1]  # a backbone may have any name
    ]
    embeddings: list[str] = []
    if parts:
        with atomic_directory(folder.out / EMBEDDINGS) as joined:
            embeddings = [f"{EMBEDDINGS}/{name}" for name in join_embeddings(parts, joined, shutil.copyfile)]
    for name in RESULTS:
        source = found[-1] / name
        if not source.is_file():
            continue
        content = source.read_bytes()
        if name == "lineage.json":
            # The report is itself a task of the run, so only now is every duration known.
            more = {"steps": finished_tasks(folder.events), "embeddings": embeddings}
            content = f"{json.dumps({**json.loads(content), **more}, indent=2)}\n".encode()
        write_atomically(folder.out / name, content)


def join_embeddings(
    parts: Iterable[Path], joined: Path, transfer: Callable[[Path, Path], object] = shutil.move
) -> list[str]:
    """Joins the embeddings of folds and cell types in one folder; each part has some files of the same tree.

    Args:
        parts: folders of BACKBONE/CELL_TYPE/fold_N.parquet.
        joined: folder that gets all of them.
        transfer: moves or copies a file.

    Returns:
        The files, relative to `joined`.
    """
    files = {file.relative_to(part): file for part in parts for file in part.rglob("*.parquet")}
    for name, file in files.items():
        (joined / name).parent.mkdir(parents=True, exist_ok=True)
        transfer(file, joined / name)
    return sorted(name.as_posix() for name in files)


def read_metrics(out: Path) -> dict[str, Any]:
    """The metrics.json of a finished run."""
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def check_results_folder(out: Path, key: str) -> None:
    """Refuses a folder for the results of a run that was not started in it.

    Raises:
        InputError: it is not empty, and has no earlier results of the same run.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        earlier = json.loads((out / "lineage.json").read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, AttributeError):
        earlier = None
    if earlier != key or (out / "run").exists():
        raise InputError(f"--out {out}: not empty, and not results of run {key}; use a new folder")


@dataclass(frozen=True)
class KnownRun:
    """Where the records of an earlier run are.

    Attributes:
        key: the run's key in its store.
        store: bucket and prefix.
        truth: labels that the run was scored with; None if not known.
    """

    key: str
    store: StoreConfig
    truth: Path | None = None


def find_run(name: str, option: str = "--run") -> KnownRun:
    """Finds a run by its key, its address in an object store, or the folder of `cellsignal run --out`.

    Args:
        name: any of these.
        option: the option that gives it, for errors.

    Raises:
        InputError: a folder without a run or with a prediction, or an address that is no run's.
    """
    if "://" in name:
        return _run_at(name.rstrip("/"), f"{option} {name}")
    out = Path(name)
    if not out.is_dir():
        if "/" in name:
            raise InputError(f"{option} {name}: neither a key nor a folder of a run")
        return KnownRun(name, StoreConfig())
    file = RunFolder(out, out / "run").job
    try:
        job: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        config = parse(RunConfig, job["config"], source=str(file))
        known = KnownRun(job["lineage"]["run"], config.store, Path(job["truth"]) if job["truth"] else None)
    except InputError:  # a configuration of another version
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{option} {name}: not the folder of a run that got as far as its steps") from None
    if job.get("prediction"):
        raise InputError(f"{option} {name}: the folder of a prediction, which trains nothing; give that of a training")
    return known


def _run_at(address: str, option: str) -> KnownRun:
    bucket, path = ("", address.removeprefix(FOLDER)) if is_folder(address) else parse_uri(address)
    *prefix, runs, key = ["", *path.split("/")]
    if runs != RUNS:
        raise InputError(
            f"{option}: an address looks like s3://BUCKET[/PREFIX]/{RUNS}/KEY or file:///FOLDER/{RUNS}/KEY"
        )
    if is_folder(address):
        return KnownRun(key, StoreConfig(bucket=FOLDER + "/".join(prefix)[1:]))
    return KnownRun(key, StoreConfig(bucket=bucket, prefix="/".join(part for part in prefix if part)))


def with_address(config: RunConfig) -> RunConfig:
    """The configuration with the address of the run in init_from, if that is the run's folder.

    Raises:
        InputError: not a run's folder.
    """
    if not config.init_from or "://" in config.init_from:
        return config
    if not Path(config.init_from).is_dir() and "/" not in config.init_from:
        return config
    try:
        found = find_run(config.init_from)
    except InputError as error:
        raise InputError(f"{OPTION}: {str(error).removeprefix('--run ')}") from None
    address = join_address(found.store.bucket, found.store.prefix)
    return config.model_copy(update={"init_from": f"{address}/{RUNS}/{found.key}"})
