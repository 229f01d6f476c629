"""The folder of a run on this machine: its lock, what its run is, its results, and how a later command finds the run.

OUT/<results>           files of the report, and embeddings
OUT/run/run.json        what the folder's run is (LocalRun)
OUT/run/config.yaml     the configuration
OUT/run/events.jsonl    progress of the tasks of the last start
OUT/run/log.txt         what tasks print, of all starts
OUT/run/simulated       the simulated screen, and truth.csv beside it
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

from pydantic import Field

from components.core.config import NO_EFFECT_ON_RESULTS, FrozenModel, RunConfig, StoreConfig, first_difference, parse
from components.core.errors import InputError, StepError
from components.core.files import atomic_directory, locked, write_atomically
from components.core.progress import finished_tasks
from components.core.storage.finished import EMBEDDINGS
from components.core.storage.opening import split_address
from components.core.storage.run_records import KEY, OPTION, RUNS
from pipelines.checks import refuse_interpreter
from pipelines.dag import TaskGraph, prediction_graph, training_graph
from pipelines.run.predict_request import PredictParams


class LocalRun(FrozenModel):
    """A run on this machine, with checked input: a training, or a prediction of new plates."""

    config: RunConfig
    # directory of the screen or the new plates, or their address in a bucket; None to simulate a screen first
    screen: str | None
    truth: Path | None  # labels of unlabelled or new wells, for the report's scoring alone; absolute
    lineage: dict[str, Any]  # what is known when the run starts; `run` is its key
    prediction: PredictParams | None = None  # parameters of a prediction; None for a training
    folds: dict[str, tuple[int, ...]] = Field(default_factory=dict)  # a prediction's folds of the model, by cell type
    containers: bool = False  # whether each task is a container of its step's image

    @property
    def graph(self) -> TaskGraph:
        """The run's DAG."""
        return prediction_graph(self.folds) if self.prediction else training_graph(self.config)


class RunFolder:
    """The paths of a run's folder; `work` is the working folder, absolute."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = (out / "run").resolve()
        self.run = self.work / "run.json"
        self.config = self.work / "config.yaml"
        self.events = self.work / "events.jsonl"
        self.log = self.work / "log.txt"
        self.tmp = self.work / "tmp"  # beside the artifacts: a checkpoint should not lie in memory, as /tmp may
        self.artifacts = self.work / "kfp"
        self.simulated = self.work / "simulated"

    def source(self, screen: str | None) -> str:
        """Address of the screen that normalize reads."""
        return screen or str(self.simulated / "screen")

    def truth(self, run: LocalRun) -> Path | None:
        """Labels that report reads; a simulated screen has its own."""
        return self.simulated / "truth.csv" if run.screen is None else run.truth

    def has_results(self) -> bool:
        """Whether a run in this folder has written a report."""
        return (self.out / "report.html").exists()

    def has_finished_tasks(self) -> bool:
        """Whether a task of the DAG finished here, or a report is there."""
        return self.has_results() or any(task["step"] != "simulate" for task in finished_tasks(self.events))


@contextlib.contextmanager
def opened_folder(out: Path, run: LocalRun) -> Iterator[RunFolder]:
    """Locks the folder of a run for this process, and writes what the run is.

    Bad input leaves no folder, unless a training has finished a task in it, or a prediction has results.

    Raises:
        InputError: the folder cannot be written, is in use, or holds something else.
    """
    refuse_interpreter({"--out": str(out.resolve()), "--screen": run.screen, "--truth": str(run.truth)})
    folder = RunFolder(out)
    with contextlib.ExitStack() as held:
        try:
            if out.exists() and not folder.work.is_dir() and any(out.iterdir()):
                raise InputError(f"--out {out}: not empty, and not a run; use a new folder")
            folder.work.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder.work / "lock", wait=False))
        except BlockingIOError:
            raise InputError(
                f"--out {out}: another run is working in this folder; wait for it or use another"
            ) from None
        for path in (folder.events, folder.log):
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: is not a file; remove it, or use a new folder")
        _write_run(folder, run)
        try:
            yield folder
        except InputError:
            if not (folder.has_results() if run.prediction else folder.has_finished_tasks()):
                shutil.rmtree(folder.work)
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise


def _write_run(folder: RunFolder, run: LocalRun) -> None:
    """Records what the folder's run is; refuses another run once a task has finished."""
    content = run.model_dump_json(indent=1)
    if folder.run.exists():
        try:
            earlier = _result_part(json.loads(folder.run.read_text(encoding="utf-8")) if folder.run.is_file() else {})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"--out {folder.out}: {folder.run} is damaged, so its run is not known; use a new folder"
            ) from None
        changed = first_difference(earlier, _result_part(json.loads(content)))
        if changed and folder.has_finished_tasks():
            raise InputError(
                f"--out {folder.out}: holds a run with another {changed}; use a new folder, or the same settings"
            )
        if changed:  # nothing was computed with the earlier settings
            shutil.rmtree(folder.simulated, ignore_errors=True)
    write_atomically(folder.run, content)
    write_atomically(folder.config, run.config.dump())


def _result_part(run: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change before a run resumes."""
    config = {name: section for name, section in run["config"].items() if name not in NO_EFFECT_ON_RESULTS}
    return {"config": config, "screen": run["screen"], "truth": run["truth"], **(run["prediction"] or {})}


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
    for source in sorted(found[-1].iterdir()):  # report.html, which shows that there are results, is the last
        content = source.read_bytes()
        if source.name == "lineage.json":
            # The report is itself a task of the run, so only now is every duration known.
            more = {"steps": finished_tasks(folder.events), "embeddings": embeddings}
            content = f"{json.dumps({**json.loads(content), **more}, indent=2)}\n".encode()
        write_atomically(folder.out / source.name, content)


def join_embeddings(
    parts: Iterable[Path], joined: Path, transfer: Callable[[Path, Path], object] = shutil.move
) -> list[str]:
    """Joins the embeddings of folds and cell types, folders of BACKBONE/CELL_TYPE/fold_N.parquet, in one such folder.

    `transfer` moves or copies a file. Returns the files, relative to `joined`.
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
    """Where the records of an earlier run are, and the labels that it was scored with, if known."""

    key: str
    store: StoreConfig
    truth: Path | None = None


def find_run(name: str, option: str = "--run", any_kind: bool = False) -> KnownRun:
    """Finds a run by its key, its address in an object store, or the folder of `cellsignal run --out`; errors name `option`.

    Raises:
        InputError: a folder without a run or, unless of any kind, with a prediction, or an address that is no run's.
    """
    if "://" in name:
        try:
            store, key = split_address(name, RUNS, KEY, "a run's key", "KEY")
        except InputError as error:
            raise InputError(f"{option} {error}") from None
        return KnownRun(key, StoreConfig(bucket=store))
    out = Path(name)
    if not out.is_dir():
        if "/" in name:
            raise InputError(f"{option} {name}: neither a key nor a folder of a run")
        return KnownRun(name, StoreConfig())
    file = RunFolder(out).run
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        content["config"], content["lineage"]["run"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{option} {name}: not the folder of a run") from None
    run = parse(LocalRun, content, source=str(file))
    if run.prediction and not any_kind:
        raise InputError(f"{option} {name}: the folder of a prediction, which trains nothing; give that of a training")
    return KnownRun(run.lineage["run"], run.config.store, RunFolder(out).truth(run))


def with_address(config: RunConfig) -> RunConfig:
    """The configuration with the address of the run in init_from, if that is the run's folder.

    Raises:
        InputError: not a run's folder.
    """
    if not config.init_from or "://" in config.init_from:
        return config
    if not Path(config.init_from).is_dir() and "/" not in config.init_from:
        return config
    found = find_run(config.init_from, f"{OPTION}:")
    return config.model_copy(update={"init_from": f"{found.store.address}/{RUNS}/{found.key}"})
