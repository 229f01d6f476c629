"""The progress display of a local run: a live table in a terminal, plain lines elsewhere. Reads events only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from components.core.config import RunConfig
from components.core.progress import parse_events
from components.core.storage.run_records import task_name

QUIET_SECONDS = 10.0
"""Between two plain lines about the same task."""

WARNINGS_SHOWN = 5
"""Above a live table; the report lists all."""

TASKS_SHOWN = 8
"""In a live table; the number of the others is shown."""

TRAINING = ("pretrain", "finetune", "pseudo_label")


@dataclass
class ShownTask:
    """One running task, as its events report it."""

    name: str
    step: str
    work: float
    fraction: float = 0.0
    detail: str = ""
    seconds_left: float | None = None
    printed: float = -QUIET_SECONDS


@dataclass
class TaskDisplay:
    """Follows the events of a run."""

    config: RunConfig  # decides how the tasks' work compares
    counts: Mapping[str, int]  # tasks by step
    console: Console  # where to draw
    clock: Callable[[], float] = time.monotonic  # seconds that only grow
    # a study's names of tasks, by the `task` of their events; its warnings are not printed
    names: dict[str, str] = field(default_factory=dict)
    table: Callable[[], Table] | None = None  # a study's results so far, drawn above the tasks in a terminal
    waiting: str = ""  # what tasks that could start wait for
    finished: int = 0
    running: dict[str, ShownTask] = field(default_factory=dict)
    warnings: int = 0
    _begun: float = field(init=False)
    _done_work: float = 0.0
    _fetched_work: float = 0.0
    _unfinished: str = ""
    _live: Live | None = None

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def __enter__(self) -> TaskDisplay:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._draw)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def joined(self, seconds: float) -> None:
        """Sets that the run has been working for some seconds already."""
        self._begun = self.clock() - max(0.0, seconds)

    def read(self, events: TextIO) -> list[dict[str, Any]]:
        """Shows and returns the events that were added to the events file since the last call."""
        *lines, self._unfinished = (self._unfinished + events.read()).split("\n")
        found = list(parse_events(lines))
        for event in found:
            self.event(event)
        return found

    def event(self, event: dict[str, Any]) -> None:
        """Takes in one event of the events file."""
        key = event.get("task") or event_name(event)
        name = self.names.get(key) or event_name(event)
        kind = event["event"]
        if kind == "start":
            work = expected_work(self.config, event.get("step", ""))
            self.running[key] = ShownTask(name, event.get("step", ""), work)
            self._line(f"{name}: started")
            return
        task = self.running.get(key)
        if kind == "warning" and not self.names:
            self.warnings += 1
            if self._live is None or self.warnings <= WARNINGS_SHOWN:
                # One line each in a file; a terminal wraps between words.
                text = Text(f"warning: {event['message']}", style="yellow")
                self.console.print(text, soft_wrap=self._live is None)
        if task is None:
            return
        if kind == "advance":
            # Steps that train and then predict have done most of their work by then.
            task.fraction = max(task.fraction, event["done"] / max(1, event["total"]))
            task.detail = f"{event['done']} of {event['total']} {event['what']}"
        elif kind == "epoch":
            self._epoch(task, event)
        elif kind == "note":
            task.detail = event["message"]
        elif kind == "finish":
            self.finished += 1
            self._done_work += task.work
            if task.step in TRAINING and event.get("fetched", not task.fraction):
                self._fetched_work += task.work  # no epoch: an earlier run did it
            del self.running[key]
            self._line(f"{name}: done in {duration(event['seconds'])}")
            return
        elif kind == "failed":
            del self.running[key]
            return
        if self.clock() - task.printed >= QUIET_SECONDS and task.detail:
            task.printed = self.clock()
            self._line(f"{name}: {task.detail}" + _left(task.seconds_left))

    def _epoch(self, task: ShownTask, event: dict[str, Any]) -> None:
        accuracy = event.get("accuracy")
        task.fraction = event["epoch"] / max(1, event["epochs"])
        task.seconds_left = event.get("seconds_left")
        backbone = event.get("backbone", "")
        task.detail = (
            ("" if not backbone or task.name.endswith(f" {backbone}") else f"{backbone} ")
            + f"epoch {event['epoch']}/{event['epochs']}, loss {event['loss']:.3f}"
            + (f", validation accuracy {accuracy:.3f}" if accuracy is not None else "")
            + f", {event['sites_per_s']:.0f} sites/s"
        )

    def seconds_left(self) -> float | None:
        """Time left of the whole run, from the work done in this one; None before there is any."""
        done = self._done_work + sum(task.work * task.fraction for task in self.running.values())
        total = sum(expected_work(self.config, step) * count for step, count in self.counts.items())
        # Fetching a result takes no time: it shortens what is left, but does not show the pace.
        worked = done - self._fetched_work
        if worked < 0.02 * total:
            return None
        return (self.clock() - self._begun) / worked * max(0.0, total - done)

    @property
    def total(self) -> int:
        """Tasks of the run."""
        return sum(self.counts.values())

    def _line(self, text: str) -> None:
        """One plain line, unless there is a live table."""
        if self._live is None:
            left = self.seconds_left()
            whole = "" if left is None else f"  [run: about {duration(left)} left]"
            self.console.print(
                f"[{self.finished}/{self.total} tasks] {text}{whole}", markup=False, highlight=False, soft_wrap=True
            )

    def _draw(self) -> Group:
        """Two lines a task, so that its numbers fit into 80 columns."""
        left = None if self.finished == self.total else self.seconds_left()
        lines: list[Text | Table] = [
            *([self.table()] if self.table else []),
            Text.assemble(
                (f" {self.finished}/{self.total} tasks ", "bold"),
                f" {duration(self.clock() - self._begun)} elapsed",
                "" if left is None else f", about {duration(left)} left",
                overflow="ellipsis",
                no_wrap=True,
            ),
        ]
        if self.warnings:
            many = "1 warning" if self.warnings == 1 else f"{self.warnings} warnings"
            lines.append(Text(f" {many}, listed in the report", style="yellow", overflow="ellipsis", no_wrap=True))
        for task in list(self.running.values())[:TASKS_SHOWN]:
            row = Table.grid(padding=(0, 1))
            row.add_column(width=min(34, self.console.width - 32), no_wrap=True, overflow="ellipsis")
            row.add_column(width=14)
            row.add_column(no_wrap=True)
            bar = ProgressBar(total=1.0, completed=min(1.0, task.fraction), width=14)
            row.add_row(f" {task.name}", bar, _left(task.seconds_left).removeprefix(", "))
            lines += [row, Text(f"   {task.detail}", style="dim", overflow="ellipsis", no_wrap=True)]
        more = len(self.running) - TASKS_SHOWN
        rest = [f"and {more} more tasks" if more > 0 else "", f"waiting: {self.waiting}" if self.waiting else ""]
        lines += [Text(f" {text}", style="dim", overflow="ellipsis", no_wrap=True) for text in rest if text]
        return Group(*lines)


def event_name(event: dict[str, Any]) -> str:
    """The name of the task that an event is about.

    An epoch of a step that trains several backbones has the current one, which is no part of the task's name.
    """
    backbone = event.get("backbone")
    if event["event"] == "epoch" and event.get("cell_type"):
        backbone = None
    return task_name(str(event.get("step", "run")), event.get("fold"), event.get("cell_type"), backbone)


def expected_work(config: RunConfig, step: str) -> float:
    """Rough work of a task, in passes over the screen's images; only for the time that is left."""
    teacher = config.mean_teacher
    cells, backbones = len(config.screen.cell_types), len(config.backbones)
    # A mean-teacher step costs about twice a supervised one: two student passes and the teacher's forward pass.
    per_epoch = 2.0 * backbones / cells
    total = teacher.cycle_epochs * teacher.cycles + teacher.final_epochs
    cut = teacher.cycle_epochs * teacher.finetune_cycles if teacher.pseudo_labels != "none" else total
    # Logits are of the wells without training labels, about half of them; embeddings of all.
    embedding = config.embeddings.views if config.embeddings.enabled else 0
    predicting = (config.predict.views * 0.6 + embedding) * backbones / cells + 1.0
    work = {
        "normalize": 14.0,
        "pretrain": float(config.pretrain.epochs),
        "finetune": cut * per_epoch + 1.0,
        "pseudo_label": (total - cut) * per_epoch + predicting,
        "infer": predicting,
        "report": 4.0,
    }
    return work.get(step, 0.5)


def duration(seconds: float) -> str:
    """Seconds for people: 3 h 05 min, 2 min 10 s, 7 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", {duration(seconds)} left"
