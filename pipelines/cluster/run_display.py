"""What `submit --wait` shows: a live table of steps in a terminal, plain lines elsewhere. Rich; reads what the API gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.cluster.tasks import StepTasks, tasks_by_step, waiting_pods
from pipelines.run.display import duration

STYLES = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "red", "CANCELING": "yellow", "PENDING": "yellow"}
STUCK_SECONDS = 600.0
"""Without any task that has begun, or of a pod that does not start, after which it is said where to look."""


@dataclass
class RunDisplay:
    """Shows a run.

    Attributes:
        totals: tasks by step.
        where: namespace and secret that a run whose pods do not start is asked for.
        console: where to draw.
        clock: seconds that only grow.
    """

    totals: Mapping[str, int]
    where: str
    console: Console
    clock: Callable[[], float] = time.monotonic
    _state: str = "PENDING"
    _steps: dict[str, StepTasks] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)
    _warned: bool = False
    _live: Live | None = None

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def __enter__(self) -> RunDisplay:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=2, get_renderable=self._draw)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, style: str = "yellow") -> None:
        """A line above the table."""
        self.console.print(Text(text, style=style), soft_wrap=self._live is None)

    def show(self, run: Any) -> None:
        """Takes in what the API says of the run."""
        self._state = str(run.state or "PENDING")
        self._steps = tasks_by_step(run, self.totals)
        self._warn_where_nothing_starts(waiting_pods(run))
        if self._live is None:
            self._lines()

    def _warn_where_nothing_starts(self, pods: frozenset[str]) -> None:
        """Once: a pod may wait for a GPU as it should, or for an image or a Secret that never comes."""
        now = self.clock()
        self._waiting = {pod: self._waiting.get(pod, now) for pod in pods}
        longest = now - min(self._waiting.values(), default=now)
        begun = any(step.states for step in self._steps.values())
        if not begun and now - self._begun > STUCK_SECONDS:
            what = "no task has begun"
        elif longest > STUCK_SECONDS:
            what = "a pod has not started"
        else:
            return
        if not self._warned:
            self._warned = True
            self.say(f"{what} for {duration(STUCK_SECONDS)}: {self.where}")

    def _lines(self) -> None:
        now = {"run": self._state.lower()}
        now |= {name: step.told() for name, step in self._steps.items() if step.states}
        for name, told in now.items():
            if self._told.get(name) != told:
                self.console.print(
                    f"[{self._done()} tasks] {name}: {told}", markup=False, highlight=False, soft_wrap=True
                )
        self._told = now

    def _done(self) -> str:
        return f"{sum(step.done for step in self._steps.values())}/{sum(self.totals.values())}"

    def _draw(self) -> Group:
        head = Text.assemble(
            (f" {self._done()} tasks ", "bold"),
            (f" {self._state.lower()}", STYLES.get(self._state, "")),
            f"  {duration(self.clock() - self._begun)}",
            no_wrap=True,
        )
        rows = Table.grid(padding=(0, 1))
        rows.add_column(width=13)
        rows.add_column(width=20)
        rows.add_column(no_wrap=True)
        for name, step in self._steps.items():
            bar = ProgressBar(total=max(1, step.total), completed=min(step.done, step.total), width=20)
            rows.add_row(f" {name}", bar, Text(step.told(), style="red" if step.states["FAILED"] else "dim"))
        return Group(head, rows)
