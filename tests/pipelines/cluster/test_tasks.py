"""Tasks in the API's flat list of workflow nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipelines.cluster.tasks import failed_tasks, message_of, tasks_by_step

TOTALS = {"normalize": 1, "pretrain": 4, "pseudo_label": 4, "infer": 0}


def run(*nodes: tuple[str, str], error: Any = None, **more: Any) -> Any:
    details = [
        SimpleNamespace(display_name=name, state=state, end_time=str(n), error=None, **more)
        for n, (name, state) in enumerate(nodes)
    ]
    return SimpleNamespace(run_details=SimpleNamespace(task_details=details), error=error)


def test_steps_are_counted_over_iterations_without_drivers_and_executors():
    found = tasks_by_step(
        run(
            ("root-driver", "SUCCEEDED"), ("normalize-driver", "SUCCEEDED"), ("normalize", "SKIPPED"), ("executor", "RUNNING"),
            ("pretrain", "SUCCEEDED"), ("pretrain-2", "RUNNING"), ("pretrain", "FAILED"), ("pseudo-label-3", "PENDING"),
        ),
        TOTALS,
    )  # fmt: skip
    assert {name: step.told() for name, step in found.items()} == {
        "normalize": "1 of 1 done",
        "pretrain": "1 of 4 done, 1 running, 1 failed",
        "pseudo_label": "0 of 4 done, 1 pending",
    }


def test_the_first_to_fail_comes_first_and_its_surroundings_are_no_tasks():
    nodes = (("pseudo-label-2", "FAILED"), ("pretrain", "FAILED"), ("root", "FAILED"), ("for-loop-1", "FAILED"))
    assert failed_tasks(run(*nodes), TOTALS) == ["pseudo_label", "pretrain"]
    assert failed_tasks(run(("pretrain-driver", "FAILED"), ("root", "FAILED")), TOTALS) == [
        "pretrain (before it started)"
    ]


def test_a_run_without_details_has_no_tasks_and_says_what_its_error_says():
    empty = SimpleNamespace(run_details=None, error=SimpleNamespace(message="quota\n exceeded"))
    assert failed_tasks(empty, TOTALS) == []
    assert message_of(empty) == "quota exceeded"
