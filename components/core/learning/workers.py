"""Threads that work off a queue in order and can be ended at once. The standard library's executor costs more a task."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK_S = 0.5
"""How often an idle thread looks whether the program ends, which waits for threads; nobody may have closed it."""


class Workers(Generic[T]):
    """Calls a function on each task, in threads that start as tasks come.

    Args:
        work: the function; it must not raise.
        most: threads at most.
        name: of the threads.
    """

    def __init__(self, work: Callable[[T], None], most: int, name: str) -> None:
        self._work = work
        self._most = most
        self._name = name
        self._tasks: SimpleQueue[T | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, task: T) -> None:
        """Queues a task behind the others."""
        self._tasks.put(task)
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run, name=f"{self._name} {len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Drops the tasks that are queued, and returns when each thread has ended with the one that it is at."""
        with contextlib.suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=_LOOK_S)
            except Empty:
                if threading.main_thread().is_alive():
                    continue
                return
            if task is None:
                return
            self._work(task)
            del task  # or its batch would live until the next one
