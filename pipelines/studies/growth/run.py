"""Runs the rungs of the growth chart, seed by seed: tasks in, growth.json and growth.png out."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.step_settings import library_versions
from components.core.storage.digests import code_digest
from pipelines.studies.executor import TaskFolder, run_tasks, study_folder
from pipelines.studies.growth.results import Growth, RungScores, accuracy
from pipelines.studies.growth.rungs import Rung, rungs
from pipelines.studies.shared_tasks import SharedTasks, StudyRun, StudyTask, add_training

LAST = "folds"


def grow(
    config: RunConfig, seeds: Sequence[int], out: Path, workers: int, lineage: Mapping[str, Any], console: Console
) -> Growth:
    """Trains and scores every rung for every seed; what is finished below `out` is not done again.

    Args:
        config: with everything on, the last rung.
        seeds: each changes the simulated screen and the training.
        out: folder of growth.json, growth.png and the work.
        workers: processes side by side.
        lineage: code version and the like, for growth.json.
        console: where progress is shown.

    Raises:
        InputError: a configuration that the rungs can not be made of, or a folder of another one.
        StepError: a task failed; finished tasks are kept.
    """
    ladder = rungs(config)
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"--seeds: different numbers are expected, got {list(seeds)}")
    described = json.loads(config.model_dump_json())
    del described["seed"]  # the seeds of the rungs are given apart, and more of them may be added
    with study_folder(out, described):
        # Finer keys below, in the object store, still find the steps that a change of code leaves alone.
        shared = SharedTasks(code_digest("components") + library_versions())
        runs = {
            (seed, rung.name): add_training(shared, rung.config.model_copy(update={"seed": seed}))
            for seed in seeds
            for rung in ladder
        }
        progress = _Progress(
            Growth(config, seeds, {r.name: RungScores(r) for r in ladder}), runs, out, lineage, console
        )
        progress.total = len(shared.tasks)
        run_tasks(shared.tasks.values(), progress.folder, workers, progress.finished)
        return progress.growth


class _Progress:
    """Scores and shows a rung when its last task is finished."""

    def __init__(
        self,
        growth: Growth,
        runs: Mapping[tuple[int, str], StudyRun],
        out: Path,
        lineage: Mapping[str, Any],
        console: Console,
    ) -> None:
        self.growth, self.total = growth, 0
        self.folder = TaskFolder(out / "work")
        self._runs, self._out, self._lineage, self._console = runs, out, lineage, console
        self._open = {key: {task.digest for task in run.tasks} for key, run in runs.items()}
        self._seconds: dict[str, float] = {}
        self._begun, self._reused, self._worked = time.monotonic(), 0, 0

    def finished(self, task: StudyTask, seconds: float, before: bool) -> None:
        """Takes in a finished task; `before` if an earlier run finished it."""
        self._seconds[task.digest] = seconds
        self._reused += before
        self._worked += not before
        if not before:
            self._say(f"{task.name}: {seconds:.0f} s")
        complete = [key for key, left in self._open.items() if task.digest in left and not left - {task.digest}]
        for left in self._open.values():
            left.discard(task.digest)
        for key in complete:
            self._score(*key)

    def _score(self, seed: int, name: str) -> None:
        run, entry = self._runs[seed, name], self.growth.measured[name]
        named = {cell_type: self.folder.path(output) for cell_type, output in run.predictions.items()}
        truth = self.folder.path(run.truth)
        raw = accuracy(named, truth, "raw_sirna")
        entry.per_seed[seed], entry.cell_types[seed] = raw["overall"], raw
        entry.seconds[seed] = math.fsum(self._seconds[digest] for digest in self._added(seed, entry.rung))
        for known in self.growth.measured.values():
            # Seeds may finish in any order where some are reused; the files list them as asked for.
            known.per_seed = {s: known.per_seed[s] for s in self.growth.seeds if s in known.per_seed}
        if name == LAST:
            self.growth.assigned[seed] = accuracy(named, truth, "sirna")["overall"]
        self.growth.write(self._out, self._lineage)
        label = entry.rung.label.replace("\n", " ")
        route = {"adabn": "AdaBN, ", "aside": "aside, ", "standardise": ""}[entry.rung.route]
        self._console.print(f"seed {seed}  {route}{label}: {raw['overall']:.3f}", style="bold", highlight=False)
        if name == LAST:
            self._console.print(f"seed {seed}  after assignment: {self.growth.assigned[seed]:.3f}", highlight=False)

    def _added(self, seed: int, rung: Rung) -> set[str]:
        """The tasks of a rung that no rung before it has."""
        own = {task.digest for task in self._runs[seed, rung.name].tasks}
        for name in self.growth.measured:
            if name == rung.name:
                break
            own -= {task.digest for task in self._runs[seed, name].tasks}
        return own

    def _say(self, text: str) -> None:
        done = self._reused + self._worked
        left = ""
        if self._worked >= 5:
            seconds = (time.monotonic() - self._begun) / self._worked * (self.total - done)
            left = f", about {seconds / 60:.0f} min left"
        self._console.print(f"[{done}/{self.total} tasks{left}] {text}", markup=False, highlight=False, style="dim")


def lineage_of(code_version: str) -> dict[str, Any]:
    """What growth.json says about where it comes from."""
    return {
        "code_version": code_version,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
