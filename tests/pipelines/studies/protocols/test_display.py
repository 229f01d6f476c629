"""What a terminal and a file are told while tasks run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.studies.protocols.display import StudyDisplay, duration
from pipelines.studies.shared_tasks import SharedTasks, StudyTask


class Case:
    """Three trainings and a prediction under a clock that the test turns."""

    def __init__(self, folder: Path, **console) -> None:
        self.now, self.file, self.events = 0.0, io.StringIO(), folder / "events.jsonl"
        self.events.write_text("")
        self.console = Console(file=self.file, width=80, **console)
        self.display = StudyDisplay(self.console, self.events, None, clock=lambda: self.now)
        shared = SharedTasks("code")
        self.tasks = [shared.add(s, f"{n}", {}, {}, {}, {}) for n, s in enumerate(["pretrain"] * 3 + ["infer"])]
        for task, name in zip(self.tasks, ["batch 1", "batch 2", "random 1", "batch 1 HUVEC"], strict=True):
            self.display.expect(task, name)

    def tell(self, task: StudyTask, **event) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps({"task": task.digest, **event}) + "\n")


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


EPOCH = {"event": "epoch", "epoch": 5, "epochs": 10, "loss": 2.0, "sites_per_s": 300.0, "seconds_left": 61.0}


def test_a_file_gets_a_line_a_start_an_end_and_now_and_then_of_a_long_task(case):
    one, two, *_ = case.tasks
    case.display.started(one)
    case.tell(one, **EPOCH)
    case.now = 10.0
    case.display.read()
    case.tell(one, **EPOCH | {"epoch": 6})
    case.now = 40.0
    case.display.read()
    case.display.finished(one, 50.0, False)
    case.display.finished(two, 99.0, True)
    assert case.file.getvalue().splitlines() == [
        "[0 of 4 tasks done] batch 1: started",
        "[0 of 4 tasks done, about 2 min 47 s left] batch 1: epoch 6/10, loss 2.000, 300 sites/s, 1 min 01 s left",
        # 40 s for 0.6, then for one, of 3.1 trainings' work
        "[1 of 4 tasks done, about 1 min 24 s left] batch 1: done in 50 s",
    ]


def test_tasks_of_earlier_runs_say_nothing_of_the_pace(case):
    case.now = 5.0
    case.display.finished(case.tasks[0], 1000.0, True)
    assert case.display.seconds_left() is None
    case.now = 20.0
    case.display.finished(case.tasks[1], 20.0, False)
    assert case.display.seconds_left() == pytest.approx(20.0 * 1.1)  # a training and a prediction are left


def test_equal_steps_are_told_apart_and_half_lines_wait(case):
    one, _, other, _ = case.tasks
    case.display.started(one)
    case.display.started(other)
    text = json.dumps({"task": other.digest, **EPOCH})
    with case.events.open("a") as file:
        file.write(text[:20])
        file.flush()
        case.display.read()
        file.write(text[20:] + "\n")
    case.display.read()
    running = case.display._running
    assert (running[one.digest].fraction, running[other.digest].fraction) == (0.0, 0.5)


def test_a_terminal_shows_what_runs_within_its_width(tmp_path):
    case = Case(tmp_path, force_terminal=True, color_system=None)
    with case.display.shown():
        case.display.started(case.tasks[0])
        case.tell(case.tasks[0], **EPOCH)
        case.console.print(case.display._draw())
    shown = case.file.getvalue()
    assert "epoch 5/10, loss 2.000, 300 sites/s, 1 min 01 s left" in shown
    assert "0 of 4 tasks done" in shown
    assert "started" not in shown, "no plain lines beside the live ones"


def test_durations_are_short():
    assert [duration(s) for s in (0.4, 59.7, 119.6, 3725.0)] == ["0 s", "1 min 00 s", "2 min 00 s", "1 h 02 min"]
