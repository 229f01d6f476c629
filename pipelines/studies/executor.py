"""Runs the tasks of a study in worker processes that stay, so that each loads torch once. Reads and writes below one folder.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.core.config import RunConfig, first_difference
from components.core.errors import InputError, StepError
from components.core.files import locked, write_atomically
from components.core.processes import end_with_parent
from components.core.progress import EVENTS_VARIABLE, TASK_VARIABLE
from components.core.storage.opening import choose_store, open_store
from pipelines.run.display import TaskDisplay
from pipelines.studies.tasks import StudyOutput, StudyTask

POLL_SECONDS = 0.2


def with_store(config: RunConfig, store: str | None) -> RunConfig:
    """The configuration with the object store that a command chose, which works.

    Raises:
        InputError: the store cannot be used.
    """
    chosen = choose_store(config.store, store)
    open_store(chosen.bucket, chosen.prefix).check()
    return config.model_copy(update={"store": chosen})


@dataclass(frozen=True)
class StudyFolder:
    """The folder below which the tasks of a study keep their outputs."""

    folder: Path

    def path(self, output: StudyOutput) -> Path:
        """The file or folder of an output."""
        name, _, below = output.name.partition("/")
        return self._of(output.task) / output.task.outputs[name] / below

    def seconds(self, task: StudyTask) -> float | None:
        """Seconds of a finished task; None if it is not finished."""
        try:
            return float(json.loads((self._of(task) / "done.json").read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError):
            return None

    def forget(self, task: StudyTask) -> None:
        """Makes a finished task run again, for one with inputs that its digest does not cover."""
        (self._of(task) / "done.json").unlink(missing_ok=True)

    def prepare(self, task: StudyTask) -> dict[str, Any]:
        """Empties a task's folder; returns the arguments of its step."""
        shutil.rmtree(self._of(task), ignore_errors=True)
        self._of(task).mkdir(parents=True)
        arguments: dict[str, Any] = dict(task.values)
        for name, value in task.inputs.items():
            paths = [str(self.path(each)) for each in (value if isinstance(value, tuple) else (value,))]
            arguments[name] = paths if isinstance(value, tuple) else paths[0]
        arguments.update({name: str(self._of(task) / file) for name, file in task.outputs.items()})
        return arguments

    def finish(self, task: StudyTask, seconds: float) -> None:
        """Marks a task as finished."""
        write_atomically(self._of(task) / "done.json", json.dumps({"step": task.step, "seconds": seconds}))

    def _of(self, task: StudyTask) -> Path:
        return self.folder / "tasks" / task.digest


@contextmanager
def study_folder(out: Path, described: Mapping[str, Any]) -> Iterator[StudyFolder]:
    """Locks a study's output folder for this process.

    Args:
        out: created if it does not exist.
        described: what decides the folder's content; the same for every run in it.

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
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
        try:
            path = work / "described.json"
            if path.is_file():
                changed = first_difference(_described(path, out), dict(described))
                if changed:
                    raise InputError(f"--out {out}: holds results of another {changed}; use a new folder")
            else:
                write_atomically(path, json.dumps(dict(described)))
            yield StudyFolder(work)
        except OSError as error:
            raise StepError(
                f"{error.filename or out}: cannot be written ({error.strerror}); make room and run again"
            ) from None


def _described(path: Path, out: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"--out {out}: {path.name} is damaged; use a new folder") from None


def run_tasks(
    tasks: Iterable[StudyTask],
    folder: StudyFolder,
    workers: int,
    config: RunConfig,
    console: Console,
    finished: Callable[[StudyTask, float], None] = lambda *_: None,
    table: Callable[[], Table] | None = None,
) -> None:
    """Runs the tasks that are not finished yet, earlier ones first, as many in parallel as there are workers.

    Args:
        tasks: each after those that it needs.
        folder: where outputs go.
        workers: processes, of one torch thread each.
        config: decides how the tasks' work compares, for the time left.
        console: where progress is shown.
        finished: called with every task and its seconds, also with those that an earlier run finished.
        table: the results so far, for a live display.

    Raises:
        InputError: a task found bad input.
        StepError: a task failed, or its process died; finished tasks are kept.
    """
    done: set[str] = set()
    left = []
    for task in tasks:
        known = folder.seconds(task)
        if known is None:
            left.append(task)
        else:
            done.add(task.digest)
            finished(task, known)
    if done:
        console.print(f"{len(done)} tasks were finished before", highlight=False)
    if not left:
        return
    display = TaskDisplay(config, Counter(task.step for task in left), console, table=table)
    display.names.update({task.digest: task.name for task in left})
    events, log = folder.folder / "events.jsonl", folder.folder / "log.txt"
    events.write_text("", encoding="utf-8")
    # numcodecs makes a semaphore in every worker; Python warns of it if a worker is terminated.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(str(log), str(events), os.getpid()))
    running: dict[Future[float], StudyTask] = {}
    try:
        with events.open(encoding="utf-8") as lines, display:
            while left or running:
                ready = [task for task in left if all(need.digest in done for need in task.needs)]
                for task in ready[: workers - len(running)]:
                    left.remove(task)
                    running[pool.submit(_call, task.step, folder.prepare(task), task.digest)] = task
                ended = wait(running, POLL_SECONDS, FIRST_COMPLETED).done
                display.read(lines)
                for future in ended:
                    task = running.pop(future)
                    seconds = _seconds(future, task, log)
                    folder.finish(task, seconds)
                    done.add(task.digest)
                    finished(task, seconds)
    except BaseException:
        # The next run writes the unfinished outputs of the workers again.
        for process in list(pool._processes.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _seconds(future: Future[float], task: StudyTask, log: Path) -> float:
    """Seconds of an ended task, rounded as they are recorded."""
    try:
        return round(future.result(), 3)
    except BrokenProcessPool:
        raise StepError(
            f"{task.name}: its process was killed, perhaps for memory (see {log}); run the same command again to resume"
        ) from None
    except (InputError, StepError):
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


def _call(step: str, arguments: dict[str, Any], digest: str) -> float:
    """Calls a step's main; returns its seconds."""
    os.environ[TASK_VARIABLE] = digest
    begun = time.monotonic()
    importlib.import_module(f"components.{step}.step").main(**arguments)
    return time.monotonic() - begun
