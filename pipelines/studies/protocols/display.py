"""What the terminal shows while the protocols run: the table so far, and what each worker does. Rich; reads events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from components.core.progress import parse_events
from pipelines.studies.shared_tasks import StudyTask

INFER_SHARE = 0.1
"""Work of a cell type's inference, as a share of a pretraining; for the time left alone."""
QUIET_SECONDS = 30.0
"""Between two plain lines about the same task."""


@dataclass
class StudyProgress:
    """A task that a worker has."""

    name: str
    work: float
    fraction: float = 0.0
    detail: str = ""
    printed: float = 0.0


class StudyDisplay:
    """Follows tasks and their events.

    Args:
        console: where to draw; a terminal gets a live table, a file plain lines.
        events: the file that steps tell their progress in.
        results: the table so far; None shows the tasks alone.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        console: Console,
        events: Path,
        results: Callable[[], Table] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._results, self._clock = console, results, clock
        self._events = events.open(encoding="utf-8")
        self._rest = ""
        self._begun = clock()
        self._work: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._running: dict[str, StudyProgress] = {}
        self._finished: set[str] = set()
        self._reused: set[str] = set()
        self._live: Live | None = None

    def expect(self, task: StudyTask, name: str) -> None:
        """A task that the run has, before any of them starts."""
        self._names[task.digest] = name
        self._work[task.digest] = INFER_SHARE if task.step == "infer" else float(task.step == "pretrain")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws until the end of the block."""
        with self._events:
            if not self._console.is_terminal:
                with self._read_now_and_then():
                    yield
                return
            with Live(console=self._console, get_renderable=self._draw, refresh_per_second=4, transient=True) as live:
                self._live = live
                yield

    @contextmanager
    def _read_now_and_then(self) -> Iterator[None]:
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(1.0):
                self.read()

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        try:
            yield
        finally:
            ended.set()
            reader.join()

    def started(self, task: StudyTask) -> None:
        """A worker has taken a task."""
        name = self._names[task.digest]
        self._running[task.digest] = StudyProgress(name, self._work[task.digest], printed=self._clock())
        self._line(f"{name}: started")

    def finished(self, task: StudyTask, seconds: float, before: bool) -> None:
        """A task is there; `before` if an earlier run did it."""
        self._running.pop(task.digest, None)
        self._finished.add(task.digest)
        if before:
            self._reused.add(task.digest)
        else:
            self._line(f"{self._names[task.digest]}: done in {duration(seconds)}")

    def say(self, text: str) -> None:
        """A line that stays, above a live table."""
        self._console.print(text, style="bold" if self._live else None, highlight=False, soft_wrap=True)

    def read(self) -> None:
        """Takes in the events since the last call."""
        *lines, self._rest = (self._rest + self._events.read()).split("\n")
        for event in parse_events(lines):
            running = self._running.get(event.get("task", ""))
            if running is not None:
                self._take(running, event)

    def _take(self, running: StudyProgress, event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            running.fraction = event["epoch"] / event["epochs"]
            running.detail = (
                f"epoch {event['epoch']}/{event['epochs']}, loss {event['loss']:.3f}, {event['sites_per_s']:.0f} sites/s, "
                f"{duration(event['seconds_left'])} left"
            )
        elif event["event"] == "advance":
            running.fraction = event["done"] / max(1, event["total"])
            running.detail = f"{event['done']} of {event['total']} {event['what']}"
        elif event["event"] in ("note", "warning"):
            running.detail = event["message"]
        if self._live is None and running.detail and self._clock() - running.printed >= QUIET_SECONDS:
            running.printed = self._clock()
            self._line(f"{running.name}: {running.detail}")

    def seconds_left(self) -> float | None:
        """Time left, from the work done by this run; None before there is enough of it."""
        done = sum(self._work[digest] for digest in self._finished - self._reused)
        done += sum(task.work * task.fraction for task in self._running.values())
        total = sum(self._work.values()) - sum(self._work[digest] for digest in self._reused)
        if done < 0.02 * total or not done:
            return None
        return (self._clock() - self._begun) / done * max(0.0, total - done)

    def _summary(self) -> str:
        left = self.seconds_left()
        reused = f", {len(self._reused)} of them from before" if self._reused else ""
        return f"{len(self._finished)} of {len(self._names)} tasks done{reused}" + (
            "" if left is None else f", about {duration(left)} left"
        )

    def _line(self, text: str) -> None:
        if self._live is None:
            self._console.print(f"[{self._summary()}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> Group:
        self.read()
        rows = Table.grid(padding=(0, 1))
        for task in list(self._running.values()):
            bar = ProgressBar(total=1.0, completed=task.fraction, width=20)
            rows.add_row(Text(task.name, no_wrap=True), bar)
            rows.add_row(
                Text(f"  {task.detail}" if task.detail else "  starting", style="dim", overflow="ellipsis"), ""
            )
        state = Text(f"{self._summary()}, {duration(self._clock() - self._begun)} so far")
        return Group(*([self._results()] if self._results else []), state, rows)


def duration(seconds: float) -> str:
    """3725.0 becomes 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
