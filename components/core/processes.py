"""Cores that a process may use, worker processes, and processes that end with their parent.

`python -m components.core.processes JOB` is one of a training step's processes, started by torchrun.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from components.core.errors import InputError, StepError

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use; in a container at most its CPU limit, rounded up."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(available, cpu_limit(_CGROUPS))))


def cpu_limit(cgroups: Path) -> float:
    """The CPU limit of this process's container, in cores; infinite if there is none.

    Args:
        cgroups: mount point of the container's cgroup: version 2's `cpu.max`, or version 1's `cpu/cpu.cfs_quota_us`.
    """
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # `max`
        return math.inf
    return limit if limit > 0 else math.inf  # -1 means no limit


def dies_with_parent(signal_number: int) -> Callable[[], None] | None:
    """A `preexec_fn` that makes a child receive a signal when its parent dies, even by kill -9.

    The libraries' lock may be held by another thread when the process forks, so the child must not load or look up anything.
    None on systems other than Linux (it is prctl 1).
    """
    if sys.platform != "linux":
        return None
    return functools.partial(ctypes.CDLL(None).prctl, 1, signal_number)


def end_with_parent(
    parent: int | None = None, end: Callable[[], object] = lambda: os._exit(1), seconds: float = 1.0
) -> None:
    """Ends this process by `end` when its parent (None: the current one) is gone, even after kill -9; a thread checks regularly."""
    known = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == known:
            time.sleep(seconds)
        end()

    threading.Thread(target=watch, daemon=True).start()


def worker_processes(count: int, modules: Sequence[str]) -> ProcessPoolExecutor:
    """A pool of worker processes that end with this one, kill -9 included, and leave Ctrl-C to it.

    They are forked from a server process without threads; this process may have threads of torch or of a store's client.

    Args:
        count: workers, all started at once.
        modules: modules that the tasks use, imported once for all workers.
    """
    context = multiprocessing.get_context("forkserver")
    # Every worker would import the main module again if it was started with python -m.
    main = getattr(sys.modules["__main__"], "__spec__", None)
    own = [main.name] if main is not None and main.name.rpartition(".")[2] != "__main__" else []
    context.set_forkserver_preload([*modules, *own])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    # A pool that starts workers one by one, with the first tasks, may wait forever if one is killed while another starts.
    pool._launch_processes()  # type: ignore[attr-defined]  # private, and the same in Python 3.11 to 3.13
    pool.submit(int)  # the first task starts the thread that ends the workers
    return pool


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A pool ends its workers by SIGTERM and waits for them: one that inherited "ignore" would make it wait forever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(
        OSError, AttributeError
    ):  # glibc only: keep large freed blocks instead of taking fresh pages each time
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 2**25), (-1, 2**27), (-8, 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
            libc.mallopt(option, value)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends a child that is still running: SIGTERM, then SIGKILL after `seconds`."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_job(job: Path) -> None:
    """Runs the step of a job file in this process."""
    end_with_parent(seconds=0.2)  # before the step's imports, which take seconds
    parsed = json.loads(job.read_text(encoding="utf-8"))
    try:
        import_module(f"components.{parsed['step']}.step").main(**parsed["arguments"])
    except BaseException as error:
        if not isinstance(error, InputError | StepError):  # the process that started this one reports those
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # Exits at once: destroying the process group would wait for work of the other processes that will never come.
        os._exit(1)


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
