"""A study: the tasks of many related configurations, equal ones once, run in worker processes that each load torch once.

A task's digest identifies its result: its step, the settings that decide it, and the digests of its inputs. So configurations
that agree in a part of the DAG share its tasks.

OUT/work/described.json             what decides the folder's content
OUT/work/tasks/DIGEST/<outputs>     outputs of a task
OUT/work/tasks/DIGEST/done.json     written last: the task is finished, and its seconds
OUT/work/events.jsonl, log.txt      events and output of the steps
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from components.core.command import number_items
from components.core.config import RunConfig, first_difference
from components.core.errors import InputError, StepError
from components.core.files import locked, write_atomically
from components.core.learning.step_settings import (
    InferSettings,
    MeanTeacherSettings,
    PretrainSettings,
    library_versions,
)
from components.core.processes import end_with_parent
from components.core.progress import EVENTS_VARIABLE, TASK_VARIABLE
from components.core.screen.simulation.plate_design import SimulationSettings
from components.core.screen.simulation.real_cells import photographs_digest
from components.core.storage.digests import code_digest, digest_text
from pipelines.dag import OUTPUTS, DagTask, TaskOutput, training_graph
from pipelines.run import RESUME
from pipelines.run.display import TaskDisplay

POLL_SECONDS = 0.2
FILES = {"screen": "screen.json", "holdout": "holdout.json", "holdout_labels": "holdout_labels.csv"}
"""Outputs whose file has another name than the parameter."""


class Spent(NamedTuple):
    """Time that a task took, in all threads of its process."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, eq=False)
class StudyTask:
    """One call of a step's `main`, after the tasks that it needs; `folder` is named by the task's digest."""

    step: str
    name: str
    folder: Path
    arguments: dict[str, Any]
    needs: Sequence[StudyTask]

    @property
    def digest(self) -> str:
        """Identifies the task's result."""
        return self.folder.name

    def path(self, output: str) -> Path:
        """The file or folder of an output."""
        return self.folder / FILES.get(output, output)

    def spent(self) -> Spent | None:
        """What the finished task took; None if it is not finished."""
        try:
            done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
            return Spent(done["seconds"], done["cpu_seconds"])
        except (OSError, ValueError):
            return None

    def finish(self, spent: Spent) -> None:
        """Marks the task as finished."""
        write_atomically(self.folder / "done.json", json.dumps({"step": self.step, **spent._asdict()}))

    def forget(self) -> None:
        """Makes a finished task run again, for one with inputs that its digest does not cover."""
        (self.folder / "done.json").unlink(missing_ok=True)


def study_seeds(values: Sequence[str]) -> list[int]:
    """The values of --seeds as numbers; InputError unless they are whole numbers from 0, all different."""
    numbers = number_items("--seeds", values, 0)
    if len(set(numbers)) != len(numbers):
        raise InputError(f"--seeds: different numbers are expected, got {numbers}")
    return numbers


class StudyCase(NamedTuple):
    """What is scored once its tasks are finished."""

    tasks: Collection[StudyTask]
    score: Callable[[], object]


@dataclass
class Study:
    """The tasks of a study, each after those that it needs."""

    folder: Path  # where they keep their outputs
    workers: int  # processes in parallel, of one torch thread each
    console: Console  # where progress is shown
    # After a change of code, the object store's finer keys still find the results of the steps that it does not touch.
    # decides all results: digest of the code, versions of libraries
    code: str = field(default_factory=lambda: code_digest("components") + library_versions())
    tasks: dict[str, StudyTask] = field(default_factory=dict)
    _ran: set[StudyTask] = field(default_factory=set)

    def simulate(self, config: RunConfig, label: str = "") -> StudyTask:
        """Adds the simulation of a configuration's screen: its output `out` has screen/ and truth.csv."""
        settings = config.section(SimulationSettings).model_dump_json()
        photographs = config.simulate.photographs
        decisive = [settings, photographs_digest(photographs)] if photographs else settings
        return self._add("simulate", f"{label}simulate", decisive, {"config": settings}, [], ["out"])

    def add_training(
        self,
        config: RunConfig,
        source: StudyTask | str = "",
        label: str = "",
        included: Callable[[DagTask], bool] = lambda task: task.step != "report",
        files: Mapping[str, Path] | None = None,
        content: str = "",
    ) -> dict[DagTask, StudyTask]:
        """Adds tasks of a configuration's training, except those that equal ones of an earlier configuration.

        Args:
            config: the configuration.
            source: the screen that normalize reads: its address, or its simulation.
            label: put before the names of the tasks.
            included: which tasks to add; `files` replace the outputs of the others.
            files: paths by output name.
            content: digest of those files.
        """
        made = dict[DagTask, StudyTask]()

        def path(output: TaskOutput) -> str:
            known = made.get(output.task)
            return str(known.path(output.name) if known else (files or {})[output.name])

        for task in filter(included, training_graph(config).tasks):
            # Configurations share their tasks, so that a manifest has another one's.
            arguments: dict[str, Any] = {} if task.step == "ensemble" else {"config": config.model_dump_json()}
            needs = [made[each] for each in made if each.number in task.needs]
            if task.on_gpu:
                arguments |= task.labels
            if task.step == "normalize" and isinstance(source, StudyTask):
                arguments["source"] = str(source.path("out") / "screen")
                needs.append(source)
            elif task.step == "normalize":
                arguments["source"] = source
            for name, value in task.inputs.items():
                arguments[name] = [path(each) for each in value] if isinstance(value, tuple) else path(value)
            decisive = [_decisive(config, task), content, task.labels]
            made[task] = self._add(task.step, f"{label}{task.name}", decisive, arguments, needs, OUTPUTS[task.step])
        return made

    def _add(
        self,
        step: str,
        name: str,
        decisive: Any,
        arguments: Mapping[str, Any],
        needs: Sequence[StudyTask],
        outputs: Iterable[str],
    ) -> StudyTask:
        """Adds a task, unless an equal one was added before; `decisive` and all arguments but `config` decide its result."""
        own = {key: value for key, value in arguments.items() if key != "config"}
        text = json.dumps([self.code, step, decisive, own], sort_keys=True)
        # Without the folder's address, so that a moved folder keeps its finished tasks.
        digest = digest_text(text.replace(json.dumps(str(self.folder))[1:-1], "."))[:16]
        task = StudyTask(step, name, self.folder / "tasks" / digest, dict(arguments), needs)
        task.arguments.update({output: str(task.path(output)) for output in outputs})
        return self.tasks.setdefault(digest, task)

    def run(self, config: RunConfig, cases: Iterable[StudyCase] = (), table: Callable[[], Table] | None = None) -> None:
        """Runs the tasks that are not finished yet, earlier ones first, as many in parallel as there are workers.

        Args:
            config: decides how the tasks' work compares, for the time left.
            cases: each is scored once, also if an earlier run finished its tasks.
            table: the results so far, for a live display.

        Raises:
            InputError: a task found bad input.
            StepError: a task failed, or its process died; finished tasks are kept.
        """
        done = {task for task in self.tasks.values() if task.spent() is not None}
        left = [task for task in self.tasks.values() if task not in done]
        waiting = [*cases]

        def score_finished() -> None:
            for case in [case for case in waiting if done.issuperset(case.tasks)]:
                waiting.remove(case)
                case.score()

        score_finished()
        if earlier := done - self._ran:
            self.console.print(f"{len(earlier)} tasks were finished before", highlight=False)
        if not left:
            return
        names = {task.digest: task.name for task in left}
        display = TaskDisplay(config, Counter(task.step for task in left), self.console, names=names, table=table)
        events, log = self.folder / "events.jsonl", self.folder / "log.txt"
        events.write_text("", encoding="utf-8")
        running: dict[Future[Spent], StudyTask] = {}
        with events.open(encoding="utf-8") as lines, display, _worker_pool(self.workers, log, events) as pool:
            while left or running:
                ready = [task for task in left if done.issuperset(task.needs)]
                for task in ready[: self.workers - len(running)]:
                    left.remove(task)
                    shutil.rmtree(task.folder, ignore_errors=True)
                    task.folder.mkdir(parents=True)
                    running[pool.submit(_call, task.step, task.arguments, task.digest)] = task
                ended = wait(running, POLL_SECONDS, FIRST_COMPLETED).done
                display.read(lines)
                for future in ended:
                    task = running.pop(future)
                    task.finish(_spent(future, task, log))
                    done.add(task)
                    self._ran.add(task)
                    score_finished()


@contextmanager
def opened_study(out: Path, described: Mapping[str, Any], workers: int, console: Console) -> Iterator[Study]:
    """Locks a study's output folder for this process; `described` decides its content, and is the same for every run in it.

    Raises:
        InputError: the folder cannot be written, another process works in it, or it belongs to another description.
        StepError: the disk was full later.
    """
    work = out.resolve() / "work"
    with ExitStack() as held:
        try:
            work.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(work / "lock", wait=False))
        except BlockingIOError:
            raise InputError(f"--out {out}: another run works in this folder; wait for it or use another") from None
        path = work / "described.json"
        if path.is_file():
            try:
                earlier = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise InputError(f"--out {out}: {path.name} is damaged; use a new folder") from None
            if changed := first_difference(earlier, dict(described)):
                raise InputError(f"--out {out}: holds results of another {changed}; use a new folder")
        else:
            write_atomically(path, json.dumps(dict(described)))
        yield Study(work, workers, console)


@contextmanager
def _worker_pool(workers: int, log: Path, events: Path) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which are ended at once if the block fails: the next run writes their outputs again."""
    # numcodecs makes a semaphore in every worker; Python warns of it if a worker is terminated.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(str(log), str(events), os.getpid()))
    try:
        yield pool
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _spent(future: Future[Spent], task: StudyTask, log: Path) -> Spent:
    """What an ended task took."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise StepError(
            f"{task.name}: its process was killed, perhaps for lack of memory (see {log}); {RESUME}"
        ) from None
    except InputError as error:
        raise InputError(f"{task.name}: {error}") from None
    except StepError:
        raise
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise StepError(f"{task.name} failed: {message} (see {log})") from None


def _begin(log: str, events: str, parent: int) -> None:
    """Prepares a worker: the steps' output goes to the log, and the worker ends with its parent."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    end_with_parent(parent)
    os.environ |= {"OMP_NUM_THREADS": "1", EVENTS_VARIABLE: events}  # torch reads the number of threads when it loads


def _call(step: str, arguments: dict[str, Any], digest: str) -> Spent:
    """Calls a step's main; returns what it took."""
    os.environ[TASK_VARIABLE] = digest
    # Before the clock starts: a worker imports torch once, which is no task's own time.
    main = importlib.import_module(f"components.{step}.step").main
    begun, cpu_begun = time.monotonic(), time.process_time()
    main(**arguments)
    return Spent(round(time.monotonic() - begun, 3), round(time.process_time() - cpu_begun, 3))


def _decisive(config: RunConfig, task: DagTask) -> str:
    """The part of the configuration that decides a task's result, as text."""
    match task.step:
        case "normalize":
            read = {"screen", "folds", "pack", "store", "prior", "init_from"}
            return config.model_dump_json(include=read, exclude={"folds": {"train"}})
        case "pretrain":
            own = config.section(PretrainSettings).fingerprint_of(str(task.backbone))
            return f"{own}{config.init_from or ''}"
        case "finetune":
            return config.section(MeanTeacherSettings).finetune_fingerprint()
        case "pseudo_label":
            return f"{config.section(MeanTeacherSettings).fingerprint()} {config.mean_teacher.fused_labels}"
        case "infer":
            return config.section(InferSettings).fingerprint()
        case "assign":
            return config.prior.model_dump_json()
        case _:
            return ""


class Scores:
    """A row of scores for every case (a rung, a protocol) and repeat (a seed, a deal of folds)."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], dict[str, float]] = {}

    def row(self, case: str, repeat: int) -> dict[str, float]:
        """The scores of a case and repeat, to be read or extended."""
        return self._rows.setdefault((case, repeat), {})

    def of(self, case: str, score: str = "overall") -> dict[int, float]:
        """One score of a case by repeat, ascending."""
        rows = sorted(self._rows.items())
        return {repeat: row[score] for (name, repeat), row in rows if name == case and score in row}


def summary(values: Mapping[int, float], unit: str) -> dict[str, Any]:
    """Mean and sample standard deviation, None if there are too few values for them; `per_UNIT`: the values by repeat."""
    found = list(values.values())
    return {
        "mean": mean(found) if found else None,
        "sd": stdev(found) if len(found) > 1 else None,
        f"per_{unit}": {str(repeat): value for repeat, value in values.items()},
    }
