"""What a run shows: the same events always give the same lines, and nothing is wider than the terminal."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from components.core.config import RunConfig
from pipelines.dag import training_graph
from pipelines.run.display import TaskDisplay, expected_work

CONFIG = RunConfig.load("demo")
COUNTS = training_graph(CONFIG).counts()
TOTAL = sum(COUNTS.values())
FINETUNE = {"step": "finetune", "fold": 1, "cell_type": "RPE"}
PRETRAIN = {"step": "pretrain", "fold": 0, "backbone": "plain_slim"}
LONG = "RPE: experiment RPE-01 (out of fold): " + "the arrangement of plate groups is not clear; " * 4 + "its end"


class Screenful:
    """A display that writes to memory, on a clock that events move."""

    def __init__(self, *, terminal: bool = False, width: int = 80) -> None:
        self.now, self.file = 100.0, io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=width, color_system=None, height=30)
        self.display = TaskDisplay(CONFIG, COUNTS, console, clock=lambda: self.now)

    def event(self, event: str, after: float = 0.0, **fields: Any) -> None:
        self.now += after
        self.display.event({"event": event, **fields})

    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    def drawn(self) -> list[str]:
        self.file.truncate(0)
        self.file.seek(0)
        self.display.console.print(self.display._draw())
        return self.lines()


def epoch(number: int, **more: Any) -> dict[str, Any]:
    return {"epoch": number, "epochs": 4, "loss": 1.25, "sites_per_s": 210.4, "seconds_left": 65.0, **more}


def test_the_lines_of_a_recorded_run():
    screen = Screenful()
    screen.event("start", step="normalize")
    screen.event("advance", step="normalize", what="plates", done=1, total=4)
    screen.event("advance", 5, step="normalize", what="plates", done=2, total=4)
    screen.event("advance", 5, step="normalize", what="plates", done=3, total=4)
    screen.event("finish", 1, step="normalize", seconds=71.6)
    screen.event("start", **PRETRAIN)
    screen.event("epoch", **PRETRAIN, **epoch(1, accuracy=0.5))
    screen.event("note", 20, **PRETRAIN, message="checkpoint found")
    screen.event("start", **FINETUNE)
    screen.event("epoch", **FINETUNE, backbone="plain", **epoch(2))
    screen.event("failed", **FINETUNE, kind="step", message="out of memory")
    assert [line.split("  [run: about")[0] for line in screen.lines()] == [
        f"[0/{TOTAL} tasks] normalize: started",
        f"[0/{TOTAL} tasks] normalize: 1 of 4 plates",
        # 2 of 4 came too soon after it
        f"[0/{TOTAL} tasks] normalize: 3 of 4 plates",
        f"[1/{TOTAL} tasks] normalize: done in 1 min 12 s",
        f"[1/{TOTAL} tasks] pretrain fold 0 plain_slim: started",
        f"[1/{TOTAL} tasks] pretrain fold 0 plain_slim: epoch 1/4, loss 1.250, validation accuracy 0.500, "
        "210 sites/s, 1 min 05 s left",
        f"[1/{TOTAL} tasks] pretrain fold 0 plain_slim: checkpoint found, 1 min 05 s left",
        f"[1/{TOTAL} tasks] finetune fold 1 RPE: started",
        f"[1/{TOTAL} tasks] finetune fold 1 RPE: plain epoch 2/4, loss 1.250, 210 sites/s, 1 min 05 s left",
    ]
    assert list(screen.display.running) == ["pretrain fold 0 plain_slim"]


def test_a_warning_is_one_line_in_a_log_however_long():
    screen = Screenful()
    for n in range(7):
        screen.event("warning", step="assign", cell_type="RPE", message=f"{n} {LONG}")
    assert screen.lines() == [f"warning: {n} {LONG}" for n in range(7)]


def feed_whole_run(screen: Screenful, pace: float) -> list[float]:
    """All tasks one after another at a constant pace; returns the time left after each event, if known."""
    left: list[float] = []

    def look() -> None:
        seconds = screen.display.seconds_left()
        if seconds is not None:
            left.append(seconds)

    for step, count in COUNTS.items():
        for fold in range(count):
            screen.event("start", step=step, fold=fold)
            seconds = pace * expected_work(CONFIG, step)
            for done in range(1, 5):
                screen.event("epoch", seconds / 4, step=step, fold=fold, **epoch(done))
                look()
            screen.event("finish", step=step, fold=fold, seconds=seconds)
            look()
    return left


@settings(max_examples=15, deadline=None)
@given(pace=st.floats(0.1, 1e4))
def test_at_a_constant_pace_the_time_left_falls_to_nothing(pace: float):
    screen = Screenful()
    left = feed_whole_run(screen, pace)
    total = pace * sum(expected_work(CONFIG, step) * n for step, n in COUNTS.items())
    assert screen.display.finished == TOTAL
    assert all(now <= before + 1e-6 * total for before, now in pairwise(left))
    assert 0.9 * total < left[0] < total
    assert left[-1] == pytest.approx(0.0, abs=1e-6 * total)
    assert screen.drawn()[0].rstrip().endswith("elapsed"), "no time is left"


def test_fetched_results_shorten_what_is_left_but_do_not_speed_up_the_pace():
    screen = Screenful()
    for fold in range(CONFIG.folds.count):
        for backbone in ("plain", "plain_slim"):
            screen.event("start", step="pretrain", fold=fold, backbone=backbone)
            screen.event("finish", 1, step="pretrain", fold=fold, backbone=backbone, seconds=1)
    assert screen.display.seconds_left() is None
    pace = 100.0
    seconds = pace * expected_work(CONFIG, "finetune")
    for cell_type in ("HUVEC", "RPE"):
        task = {**FINETUNE, "cell_type": cell_type}
        screen.event("start", **task)
        screen.event("epoch", seconds, **task, **epoch(4))
    rest = sum(expected_work(CONFIG, step) * n for step, n in COUNTS.items() if step != "pretrain")
    assert screen.display.seconds_left() == pytest.approx(pace * rest - 2 * seconds, rel=0.02)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_table_fits_the_terminal_and_shows_each_task_once(width: int):
    screen = Screenful(terminal=True, width=width)
    pseudo_label = {"step": "pseudo_label", "fold": 1, "cell_type": "HUVEC"}
    with screen.display:
        for task in (PRETRAIN, pseudo_label):
            screen.event("start", **task)
            for number in (1, 2):
                screen.event("epoch", 60, **{"backbone": "plain", **task}, **epoch(number, accuracy=0.5))
        screen.event("warning", step="assign", message=LONG)
    drawn = screen.drawn()
    assert all(len(line) <= width for line in drawn)
    assert len(drawn) == 1 + 1 + 2 * 2
    assert drawn[0].startswith(f" 0/{TOTAL} tasks  4 min 00 s elapsed, about ")
    assert drawn[1] == " 1 warning, listed in the report"
    for task, (head, detail) in zip((PRETRAIN, pseudo_label), (drawn[2:4], drawn[4:6]), strict=True):
        assert head.startswith(f" {task['step']} fold {task['fold']} ")
        assert head.rstrip().endswith("1 min 05 s left")
        assert "epoch 2/4, loss 1.250" in detail
        if width >= 80:
            assert detail.rstrip().endswith("validation accuracy 0.500, 210 sites/s")


def test_only_the_first_warnings_push_a_live_table_up():
    screen = Screenful(terminal=True)
    with screen.display:
        for n in range(9):
            screen.event("warning", step="assign", message=f"number {n}")
    assert screen.file.getvalue().count("warning: number") == 5
    assert screen.drawn()[1] == " 9 warnings, listed in the report"


def test_equal_tasks_of_many_configurations_are_distinguished():
    one = Screenful()
    one.display.names |= {"a": "first: pretrain", "b": "second: pretrain"}
    for task in ("a", "b"):
        one.event("start", task=task, **PRETRAIN)
    one.event("epoch", task="b", **PRETRAIN, **epoch(2))
    assert [task.fraction for task in one.display.running.values()] == [0.0, 0.5]
    one.event("finish", task="a", **PRETRAIN, seconds=3.0)
    assert [task.name for task in one.display.running.values()] == ["second: pretrain"]
    assert "first: pretrain: done in 3 s" in one.lines()[-1]
