"""Runs shared tasks in worker processes that stay, so that each loads torch once. Reads and writes below one folder.

FOLDER/tasks/DIGEST/<outputs>     what a task wrote
FOLDER/tasks/DIGEST/done.json     written last: the task is finished, and how long it took
FOLDER/log.txt                    what the steps print
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import first_difference
from components.core.errors import InputError, StepError
from components.core.files import locked, write_atomically
from components.core.processes import end_with_parent
from components.core.progress import TASK_VARIABLE
from pipelines.studies.shared_tasks import StudyOutput, StudyTask


@dataclass(frozen=True)
class TaskFolder:
    """The folder below which tasks keep their outputs."""

    folder: Path

    def path(self, output: StudyOutput) -> Path:
        """The file or folder of an output; `name/below` is a part of the output `name`."""
        name, _, below = output.name.partition("/")
        return self._of(output.task) / output.task.outputs[name] / below

    def done(self, task: StudyTask) -> dict[str, Any] | None:
        """Step and seconds of a finished task; None if it is not finished."""
        try:
            found: dict[str, Any] = json.loads((self._of(task) / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def forget(self, task: StudyTask) -> None:
        """Makes a task run again though it may be finished: one whose inputs no digest covers."""
        (self._of(task) / "done.json").unlink(missing_ok=True)

    def prepare(self, task: StudyTask) -> dict[str, Any]:
        """An empty folder for a task, and the arguments of its step."""
        shutil.rmtree(self._of(task), ignore_errors=True)
        self._of(task).mkdir(parents=True)
        arguments: dict[str, Any] = dict(task.values)
        for name, value in task.inputs.items():
            if isinstance(value, StudyOutput):
                arguments[name] = str(self.path(value))
            else:
                arguments[name] = [str(self.path(each)) for each in value]
        arguments.update({name: str(self._of(task) / file) for name, file in task.outputs.items()})
        return arguments

    def finish(self, task: StudyTask, seconds: float) -> None:
        """Marks a task as finished."""
        write_atomically(self._of(task) / "done.json", json.dumps({"step": task.step, "seconds": seconds}))

    def _of(self, task: StudyTask) -> Path:
        return self.folder / "tasks" / task.digest


@contextmanager
def study_folder(out: Path, described: Mapping[str, Any]) -> Iterator[Path]:
    """Locks a study's output folder for this process and gives its work folder.

    Args:
        out: created if it does not exist.
        described: what decides the folder's content; the same for every run in it.

    Raises:
        InputError: the folder cannot be written, another process works in it, or it belongs to another description.
        StepError: the disk was full later.
    """
    work = out / "work"
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
            yield work
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
    folder: TaskFolder,
    workers: int,
    finished: Callable[[StudyTask, float, bool], None],
    started: Callable[[StudyTask], None] = lambda _: None,
) -> None:
    """Runs what is not finished yet, earlier tasks first, as many side by side as there are workers.

    Args:
        tasks: each after what it needs.
        folder: where outputs go.
        workers: processes, of one torch thread each.
        finished: called with every task, its seconds, and whether an earlier run finished it.
        started: called with every task that a worker takes; the task's events carry its digest.

    Raises:
        InputError: a task found bad input.
        StepError: a task failed, or its process died; finished tasks are kept.
    """
    waiting = list(tasks)
    done: set[str] = set()
    left = []
    for task in waiting:
        known = folder.done(task)
        if known is None:
            left.append(task)
        else:
            done.add(task.digest)
            finished(task, float(known["seconds"]), True)
    if not left:
        return
    folder.folder.mkdir(parents=True, exist_ok=True)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(str(folder.folder / "log.txt"), os.getpid()),
    )
    running: dict[Future[float], StudyTask] = {}
    try:
        while left or running:
            ready = [task for task in left if all(need.digest in done for need in task.needs)]
            for task in ready[: workers - len(running)]:
                left.remove(task)
                running[pool.submit(_call, task.step, folder.prepare(task), task.digest)] = task
                started(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    seconds = round(future.result(), 3)  # as recorded, so that a later run reports the same
                except BrokenProcessPool:
                    raise StepError(
                        f"{task.step}: its process was killed, perhaps for memory (see {folder.folder / 'log.txt'}); "
                        "run the same command again to resume"
                    ) from None
                except (InputError, StepError):
                    raise
                except Exception as error:
                    what = " ".join(f"{type(error).__name__}: {error}".split())
                    raise StepError(f"{task.step} failed: {what} (see {folder.folder / 'log.txt'})") from None
                folder.finish(task, seconds)
                done.add(task.digest)
                finished(task, seconds, False)
    except BaseException:
        _end(pool)
        raise
    pool.shutdown()


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once: the next run writes their unfinished outputs again."""
    for process in list(pool._processes.values()):
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


def _begin(log: str, parent: int) -> None:
    """Readies a worker: what steps print goes to the log, and the worker ends when the program is gone."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    end_with_parent(parent)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a step loads torch


def _call(step: str, arguments: dict[str, Any], digest: str) -> float:
    """Calls a step's main; returns its seconds."""
    os.environ[TASK_VARIABLE] = digest
    begun = time.monotonic()
    importlib.import_module(f"components.{step}.step").main(**arguments)
    return time.monotonic() - begun
