"""Runs a plan's tasks in worker processes that stay, so that each loads torch once. Reads and writes below one folder.

FOLDER/tasks/DIGEST/<outputs>     what a task wrote
FOLDER/tasks/DIGEST/done.json     written last: the task is finished, and how long it took
FOLDER/log.txt                    what the steps say
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import InputError, StepError
from components.core.files import write_atomically
from components.core.processes import end_with_parent
from components.core.progress import TASK_VARIABLE
from pipelines.studies.in_process.tasks import Output, Task

LISTS_AS_JSON = {("ensemble", "logits")}
"""Arguments that a step takes as a JSON list, as KFP's components pass them."""


@dataclass(frozen=True)
class Workplace:
    """Where tasks keep what they wrote."""

    folder: Path

    def path(self, output: Output) -> Path:
        """The file or folder of an output; `name/below` is a part of the output `name`."""
        name, _, below = output.name.partition("/")
        return self._of(output.task) / output.task.outputs[name] / below

    def done(self, task: Task) -> dict[str, Any] | None:
        """What is known of a finished task: step and seconds; None where it is not finished."""
        try:
            found: dict[str, Any] = json.loads((self._of(task) / "done.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def forget(self, task: Task) -> None:
        """Has a task done again, though it may be finished: one that reads what no digest tells."""
        (self._of(task) / "done.json").unlink(missing_ok=True)

    def prepare(self, task: Task) -> dict[str, Any]:
        """An empty folder for a task, and the arguments of its step."""
        shutil.rmtree(self._of(task), ignore_errors=True)
        self._of(task).mkdir(parents=True)
        arguments: dict[str, Any] = dict(task.literals)
        for name, given in task.inputs.items():
            if isinstance(given, Output):
                arguments[name] = str(self.path(given))
            else:
                paths = [str(self.path(output)) for output in given]
                arguments[name] = json.dumps(paths) if (task.step, name) in LISTS_AS_JSON else paths
        arguments.update({name: str(self._of(task) / file) for name, file in task.outputs.items()})
        return arguments

    def finish(self, task: Task, seconds: float) -> None:
        """Marks a task as finished."""
        write_atomically(self._of(task) / "done.json", json.dumps({"step": task.step, "seconds": seconds}))

    def _of(self, task: Task) -> Path:
        return self.folder / "tasks" / task.digest


def run_tasks(
    tasks: Iterable[Task],
    workplace: Workplace,
    workers: int,
    finished: Callable[[Task, float, bool], None],
    started: Callable[[Task], None] = lambda _: None,
) -> None:
    """Runs what is not finished yet, earlier tasks first, as many side by side as there are workers.

    Args:
        tasks: each after what it needs.
        workplace: where outputs go.
        workers: processes, of one torch thread each.
        finished: hears of every task: its seconds, and whether it was finished before.
        started: hears of every task that a worker takes; the task's events name its digest.

    Raises:
        InputError: a task found bad input.
        StepError: a task failed, or its process died; finished tasks are kept.
    """
    waiting = list(tasks)
    done: set[str] = set()
    left = []
    for task in waiting:
        known = workplace.done(task)
        if known is None:
            left.append(task)
        else:
            done.add(task.digest)
            finished(task, float(known["seconds"]), True)
    if not left:
        return
    workplace.folder.mkdir(parents=True, exist_ok=True)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(str(workplace.folder / "log.txt"), os.getpid()),
    )
    running: dict[Future[float], Task] = {}
    try:
        while left or running:
            ready = [task for task in left if all(need.digest in done for need in task.needs)]
            for task in ready[: workers - len(running)]:
                left.remove(task)
                running[pool.submit(_call, task.step, workplace.prepare(task), task.digest)] = task
                started(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    seconds = round(future.result(), 3)  # as it is recorded, so that a later run tells the same
                except BrokenProcessPool:
                    raise StepError(
                        f"{task.step}: its process was killed, perhaps for memory (see {workplace.folder / 'log.txt'}); "
                        "run the same command again to go on"
                    ) from None
                except (InputError, StepError):
                    raise
                except Exception as error:
                    what = " ".join(f"{type(error).__name__}: {error}".split())
                    raise StepError(f"{task.step} failed: {what} (see {workplace.folder / 'log.txt'})") from None
                workplace.finish(task, seconds)
                done.add(task.digest)
                finished(task, seconds, False)
    except BaseException:
        _end(pool)
        raise
    pool.shutdown()


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once: their unfinished outputs are written anew by the next run."""
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
