"""What `cellsignal run` shows while steps work: a live table in a terminal, plain lines elsewhere. Rich; reads events only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from components.core.config import RunConfig

QUIET_SECONDS = 10.0


@dataclass
class Task:
    """One running task, as its events tell."""

    name: str
    begun: float
    work: float
    fraction: float = 0.0
    detail: str = ""
    seconds_left: float | None = None
    printed: float = 0.0


@dataclass
class Display:
    """Follows the events of a run.

    Attributes:
        config: decides how many tasks there are and how their work compares.
        total: tasks of the run.
        console: where to draw.
    """

    config: RunConfig
    total: int
    console: Console
    finished: int = 0
    running: dict[str, Task] = field(default_factory=dict)
    warnings: int = 0
    _begun: float = field(default_factory=time.monotonic)
    _done_work: float = 0.0
    _fetched_work: float = 0.0
    _live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._draw)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, event: dict[str, Any]) -> None:
        """Takes in one event of the events file."""
        name = task_name(event)
        kind = event["event"]
        if kind == "start":
            work = expected_work(self.config, event.get("step", ""))
            self.running[name] = Task(name, time.monotonic(), work)
            self._line(f"{name}: started")
            return
        task = self.running.get(name)
        if kind == "warning":
            self.warnings += 1
            if self._live is None or self.warnings <= 5:
                self.console.print(Text(f"warning: {event['message']}", style="yellow"))
        if task is None:
            return
        if kind == "advance":
            task.fraction = event["done"] / max(1, event["total"])
            task.detail = f"{event['done']} of {event['total']} {event['what']}"
        elif kind == "epoch":
            self._epoch(task, event)
        elif kind == "note":
            task.detail = event["message"]
        elif kind == "finish":
            self.finished += 1
            self._done_work += task.work
            del self.running[name]
            self._line(f"{name}: done in {_duration(event['seconds'])}")
            return
        elif kind == "failed":
            del self.running[name]
            return
        if time.monotonic() - task.printed > QUIET_SECONDS and task.detail:
            task.printed = time.monotonic()
            self._line(f"{name}: {task.detail}" + _left(task.seconds_left))

    def _epoch(self, task: Task, event: dict[str, Any]) -> None:
        accuracy = event.get("accuracy")
        task.fraction = event["epoch"] / max(1, event["epochs"])
        task.seconds_left = event.get("seconds_left")
        task.detail = (
            f"{event.get('backbone', '')} epoch {event['epoch']}/{event['epochs']}, loss {event['loss']:.3f}"
            + (f", validation accuracy {accuracy:.3f}" if accuracy is not None else "")
            + f", {event['sites_per_s']:.0f} sites/s"
        )

    def seconds_left(self) -> float | None:
        """Time left of the whole run, from the work done so far; None before there is any."""
        done = self._done_work + sum(task.work * task.fraction for task in self.running.values())
        total = sum(expected_work(self.config, step) * count for step, count in task_counts(self.config).items())
        if done < 0.02 * total:
            return None
        return (time.monotonic() - self._begun) / done * max(0.0, total - done)

    def _line(self, text: str) -> None:
        """One plain line, where there is no live table."""
        if self._live is None:
            left = self.seconds_left()
            whole = "" if left is None else f"  [run: about {_duration(left)} left]"
            self.console.print(
                f"[{self.finished}/{self.total} steps] {text}{whole}", markup=False, highlight=False, soft_wrap=True
            )

    def _draw(self) -> Group:
        left = self.seconds_left()
        head = Text.assemble(
            (f" {self.finished}/{self.total} steps ", "bold"),
            f" {_duration(time.monotonic() - self._begun)} elapsed",
            "" if left is None else f", about {_duration(left)} left",
            (f"  {self.warnings} warnings, listed in the report" if self.warnings else "", "yellow"),
        )
        table = Table.grid(padding=(0, 1))
        table.add_column(min_width=34, no_wrap=True)
        table.add_column(width=20)
        table.add_column(ratio=1)
        for task in self.running.values():
            table.add_row(
                f" {task.name}",
                ProgressBar(total=1.0, completed=task.fraction, width=20),
                Text(task.detail + _left(task.seconds_left), overflow="ellipsis", no_wrap=True),
            )
        return Group(head, table)


def task_name(event: dict[str, Any]) -> str:
    """A task's name for people: its step and what tells it apart."""
    parts = [str(event.get("step", "run"))]
    if event.get("fold") is not None:
        parts.append(f"fold {event['fold']}")
    parts += [str(event[key]) for key in ("cell_type", "backbone") if event.get(key) and event["event"] != "epoch"]
    if event["event"] == "epoch" and event.get("cell_type"):
        parts.append(str(event["cell_type"]))
    elif event["event"] == "epoch" and event.get("backbone"):
        parts.append(str(event["backbone"]))
    return " ".join(parts)


def task_counts(config: RunConfig) -> dict[str, int]:
    """Tasks of a run by step."""
    folds, cells = config.folds.count, len(config.screen.cell_types)
    return {
        "normalize": 1,
        "pretrain": folds * len(config.backbones),
        "finetune": folds * cells,
        "pseudo_label": folds * cells,
        "ensemble": cells,
        "assign": cells,
        "report": 1,
    }


def expected_work(config: RunConfig, step: str) -> float:
    """Rough work of a task, in passes over the screen's images; only for the time that is left."""
    teacher = config.mean_teacher
    cells, backbones = len(config.screen.cell_types), len(config.backbones)
    # A mean-teacher step costs about twice a supervised one: two student passes and the teacher's forward pass.
    per_epoch = 2.0 * backbones / cells
    finetune = teacher.cycle_epochs * teacher.finetune_cycles * per_epoch
    rest = (teacher.cycle_epochs * (teacher.cycles - teacher.finetune_cycles) + teacher.final_epochs) * per_epoch
    work = {
        "normalize": 6.0,
        "pretrain": float(config.pretrain.epochs),
        "finetune": finetune + 1.0,
        "pseudo_label": rest + config.predict.views * backbones / cells * 0.6 + 1.0,
        "report": 4.0,
    }
    return work.get(step, 0.5)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", {_duration(seconds)} left"
