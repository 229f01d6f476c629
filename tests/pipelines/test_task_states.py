"""The states of tasks, from what attempts at them reported."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from components.core.storage.task_status import SILENCE, Attempt, TaskStatus
from pipelines.dag import TaskGraph, prediction_graph
from pipelines.task_states import TaskState, summary, task_states

BEGIN = datetime(2026, 11, 29, 12, tzinfo=UTC)
NORMALIZE, INFER, OTHER_INFER, ENSEMBLE = "normalize", "infer fold 0 RPE", "infer fold 1 RPE", "ensemble RPE"
LABELS: dict[str, dict[str, Any]] = {
    NORMALIZE: {"step": "normalize"},
    INFER: {"step": "infer", "fold": 0, "cell_type": "RPE"},
    OTHER_INFER: {"step": "infer", "fold": 1, "cell_type": "RPE"},
    ENSEMBLE: {"step": "ensemble", "cell_type": "RPE"},
}


def minutes(count: float) -> datetime:
    return BEGIN + timedelta(minutes=count)


def attempt(task: str, state: str, began: float, updated: float, silence: float = 1.0) -> Attempt:
    """An attempt at a task, with times in minutes."""
    content = {**LABELS[task], "state": state, "started": minutes(began), "updated": minutes(updated), "node": "a"}
    kind = {"kind": "step", "message": "CUDA error: lost"} if state == "failed" else {}
    return Attempt(TaskStatus.model_validate({**content, **kind}), silence)


@pytest.fixture
def graph() -> TaskGraph:
    """normalize, infer of two folds, ensemble, assign, report."""
    return prediction_graph({"RPE": [0, 1]})


def by_name(graph: TaskGraph, *attempts: Attempt, **more: Any) -> dict[str, TaskState]:
    return {each.task.name: each for each in task_states(graph, attempts, **more)}


def test_without_a_report_all_tasks_wait_and_only_the_first_is_ready(graph: TaskGraph) -> None:
    states = task_states(graph, [])
    assert [each.task for each in states] == graph.tasks
    assert {each.state for each in states} == {"waiting"}
    assert [each.task.name for each in states if each.ready] == [NORMALIZE]
    assert summary(states) == "0 of 6 tasks finished, 6 waiting"


def test_a_task_is_ready_once_all_that_it_reads_is_finished(graph: TaskGraph) -> None:
    normalize, infer = attempt(NORMALIZE, "finished", 0, 1), attempt(INFER, "finished", 1, 2)
    states = by_name(graph, normalize, infer, attempt(OTHER_INFER, "running", 1, 2))
    assert [name for name, each in states.items() if each.ready] == [NORMALIZE, INFER, OTHER_INFER]
    assert summary([*states.values()]) == "2 of 6 tasks finished, 1 running, 3 waiting"
    states = by_name(graph, normalize, infer, attempt(OTHER_INFER, "finished", 1, 2))
    assert states[ENSEMBLE].ready
    assert states[ENSEMBLE].state == "waiting"


def test_a_task_without_a_report_whose_outputs_are_read_came_from_the_cache(graph: TaskGraph) -> None:
    states = by_name(graph, attempt(ENSEMBLE, "running", 0, 1))
    assert [states[name].state for name in (NORMALIZE, INFER, OTHER_INFER)] == ["finished"] * 3
    assert states["assign RPE"].state == "waiting"
    states = by_name(graph, attempt(INFER, "running", 0, 1))
    assert (states[NORMALIZE].state, states[OTHER_INFER].state) == ("finished", "waiting")


def test_the_last_attempt_decides(graph: TaskGraph) -> None:
    failed, running = attempt(INFER, "failed", 0, 1), attempt(INFER, "running", 3, 4)
    state = by_name(graph, failed, running)[INFER]
    assert (state.state, state.attempts, state.failure) == ("running", 2, "")
    assert state.last == running.status
    state = by_name(graph, failed)[INFER]
    assert (state.state, state.attempts, state.failure) == ("failed", 1, "CUDA error: lost")


def test_an_attempt_that_has_fallen_silent_is_lost(graph: TaskGraph) -> None:
    assert by_name(graph, attempt(INFER, "running", 0, 1, SILENCE - 1))[INFER].state == "running"
    lost = by_name(graph, attempt(INFER, "running", 0, 1, SILENCE + 1))[INFER]
    assert lost.state == "lost"
    assert "its node a is gone" in lost.failure
    assert by_name(graph, attempt(INFER, "finished", 0, 1, 10 * SILENCE))[INFER].state == "finished"


def test_once_the_run_has_ended_nothing_runs(graph: TaskGraph) -> None:
    running = attempt(INFER, "running", 0, 1)
    assert by_name(graph, running, ended=True)[INFER].state == "lost"


def test_a_task_that_failed_before_the_run_was_started_again_waits(graph: TaskGraph) -> None:
    failed, lost = attempt(INFER, "failed", 0, 1), attempt(OTHER_INFER, "running", 0, 1, SILENCE + 1)
    for since, expected in (
        (None, ["failed", "lost"]),
        (minutes(0.5), ["failed", "lost"]),
        (minutes(2), ["waiting"] * 2),
    ):
        states = by_name(graph, failed, lost, since=since)
        assert [states[name].state for name in (INFER, OTHER_INFER)] == expected
    states = by_name(graph, failed, attempt(NORMALIZE, "finished", 0, 0.1), since=minutes(2))
    assert states[INFER].ready
    assert states[INFER].failure == ""
    assert states[NORMALIZE].state == "finished", "an earlier start did it"


def test_an_attempt_of_an_earlier_start_that_still_works_is_running(graph: TaskGraph) -> None:
    assert by_name(graph, attempt(INFER, "running", 0, 3), since=minutes(2))[INFER].state == "running"


def test_a_task_whose_last_report_was_not_stored_is_finished_once_its_outputs_are_read(graph: TaskGraph) -> None:
    silent = attempt(INFER, "running", 0, 1, SILENCE + 1)
    reads = attempt(ENSEMBLE, "running", 2, 3)
    assert by_name(graph, silent, reads)[INFER].state == "finished"
    # A second attempt at it, after the reader began, is another matter: it copies its outputs again.
    assert by_name(graph, silent, reads, attempt(INFER, "running", 4, 5, SILENCE + 1))[INFER].state == "lost"
    assert by_name(graph, silent, reads, attempt(INFER, "failed", 4, 5))[INFER].state == "failed"


def test_the_time_of_a_task_is_that_of_its_work(graph: TaskGraph) -> None:
    worked, copied = attempt(INFER, "finished", 0, 5), attempt(INFER, "finished", 9, 9.1)
    running = attempt(OTHER_INFER, "running", 0, 2, 30.0)
    states = by_name(graph, worked, copied, running, attempt(NORMALIZE, "failed", 0, 3))
    assert [states[name].seconds for name in (INFER, OTHER_INFER, NORMALIZE, ENSEMBLE)] == [300.0, 150.0, 180.0, 0.0]
