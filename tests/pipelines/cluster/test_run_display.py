"""What `submit --wait` says of a run that does not get on."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pipelines.cluster.run_display import STUCK_SECONDS, RunDisplay

WHERE = "look at the pods"


def run(**states: str) -> Any:
    """By node: a task's own runs from when its driver has started, whatever becomes of its pod."""
    nodes = [
        SimpleNamespace(task_id=name, pod_name="", display_name=name.rstrip("0123456789"), state=state)
        for name, state in states.items()
    ]
    return SimpleNamespace(state="RUNNING", run_details=SimpleNamespace(task_details=nodes))


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([{}, {}, {}], "no task has begun for 10 min"),
        ([{"normalize": "RUNNING", "executor1": "PENDING"}] * 3, "a pod has not started for 10 min"),
        # Each starts before long: others take its place.
        ([{"pretrain": "RUNNING", f"executor{n}": "PENDING"} for n in range(3)], ""),
        ([{"pretrain": "RUNNING", "executor1": state} for state in ("PENDING", "RUNNING", "PENDING")], ""),
    ],
)
def test_whoever_waits_is_told_once_where_to_look(looks: list[dict[str, str]], told: str):
    now, shown = [0.0], io.StringIO()
    display = RunDisplay({"normalize": 1, "pretrain": 4}, WHERE, Console(file=shown, width=200), lambda: now[0])
    for look in looks:
        display.show(run(**look))
        now[0] += 0.6 * STUCK_SECONDS
    display.show(run(**looks[-1]))
    display.show(run(**looks[-1]))
    assert shown.getvalue().count(WHERE) == bool(told)
    assert told in shown.getvalue()
