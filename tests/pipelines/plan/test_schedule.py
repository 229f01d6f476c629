"""Schedules of random DAGs: valid, never under the bounds, and right where the answer is plain."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dag import DagTask, TaskOutput
from pipelines.plan.schedule import critical_path, enough_pods, remaining_paths, schedule


def reads(tasks: Iterable[DagTask]) -> dict[str, tuple[TaskOutput, ...]]:
    return {"bases": tuple(TaskOutput(task, "weights") for task in tasks)}


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[DagTask], list[float]]:
    count = draw(st.integers(1, 14))
    tasks = []
    for number in range(count):
        needs = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        step = draw(st.sampled_from(["pretrain", "assign"]))
        tasks.append(DagTask(number, step, inputs=reads(tasks[need] for need in needs)))
    seconds = draw(st.lists(st.floats(0.5, 100), min_size=count, max_size=count))
    return tasks, seconds


def starts(end: list[float], seconds: list[float]) -> list[float]:
    return [done - took for done, took in zip(end, seconds, strict=True)]


@given(dags(), st.integers(1, 6))
def test_a_schedule_is_valid_and_not_under_its_bounds(dag: tuple[list[DagTask], list[float]], gpus: int):
    tasks, seconds = dag
    end = schedule(tasks, seconds, gpus)
    start = starts(end, seconds)
    for task in tasks:
        assert all(start[task.number] >= end[need] - 1e-9 for need in task.needs)
    of_gpus = [task.number for task in tasks if task.on_gpu]
    for number in of_gpus:
        assert sum(start[n] <= start[number] + 1e-9 < end[n] - 1e-9 for n in of_gpus) <= gpus
    shortest = max(remaining_paths(tasks, seconds))
    work = sum(seconds[n] for n in of_gpus)
    assert max(end) >= max(shortest, work / gpus) - 1e-6
    assert max(end) <= shortest + work / gpus + 1e-6  # Graham's bound, CPU tasks apart


@given(dags())
def test_the_critical_path_is_a_chain_as_long_as_the_run_on_enough_pods(dag: tuple[list[DagTask], list[float]]):
    tasks, seconds = dag
    path = critical_path(tasks, seconds)
    assert all(before in tasks[after].needs for before, after in pairwise(path))
    length = sum(seconds[number] for number in path)
    assert length == pytest.approx(max(remaining_paths(tasks, seconds)))
    assert max(schedule(tasks, seconds, len(tasks))) == pytest.approx(length)
    assert max(schedule(tasks, seconds, enough_pods(tasks, seconds))) <= 1.01 * length + 1e-6


def test_the_longest_remaining_path_goes_first():
    # Two short tasks and a chain of two, on two GPUs: the chain must start at once.
    tasks = [DagTask(n, "pretrain") for n in range(3)]
    tasks.append(DagTask(3, "finetune", inputs=reads(tasks[2:])))
    assert schedule(tasks, [4.0, 4.0, 4.0, 4.0], 2) == [4.0, 8.0, 4.0, 8.0]


def test_equal_tasks_share_the_gpus():
    tasks = [DagTask(n, "pretrain") for n in range(10)]
    assert [max(schedule(tasks, [1.0] * 10, gpus)) for gpus in (1, 2, 3, 5, 10, 20)] == [10, 5, 4, 2, 1, 1]
    assert enough_pods(tasks, [1.0] * 10) == 10


def test_steps_without_a_gpu_never_wait_for_one():
    tasks = [DagTask(0, "pretrain"), *(DagTask(n, "assign") for n in range(1, 5))]
    assert schedule(tasks, [3.0, 1.0, 1.0, 1.0, 1.0], 1) == [3.0, 1.0, 1.0, 1.0, 1.0]
