"""Schedules of a DAG on a number of GPU pods: list scheduling by the longest remaining path. Pure.

Tasks without a GPU never wait for one. No schedule beats the critical path, or all GPU work divided by the pods.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from graphlib import TopologicalSorter

from pipelines.dag import DagTask

ENOUGH = 1.01
"""More pods no longer help once the schedule is within this factor of the critical path."""


def schedule(tasks: Sequence[DagTask], seconds: Sequence[float], pods: int) -> list[float]:
    """Gives every free GPU pod the ready task with the longest remaining path.

    Args:
        tasks: each after the tasks that it needs; task n is the n-th.
        seconds: duration of each task.
        pods: GPU pods in parallel, at least one.

    Returns:
        Seconds from the run's start to the end of each task.

    Source: critical-path list scheduling (Graham 1969): at most twice as long as the best schedule.
    """
    assert pods >= 1
    remaining = remaining_paths(tasks, seconds)
    left = TopologicalSorter({task.number: task.needs for task in tasks})
    left.prepare()
    end = [0.0] * len(tasks)
    queue: list[tuple[float, int]] = []  # GPU tasks that wait for a pod
    running: list[tuple[float, int]] = []
    free, now = pods, 0.0

    def begin(number: int) -> None:
        end[number] = now + seconds[number]
        heapq.heappush(running, (end[number], number))

    while left.is_active():
        for number in left.get_ready():
            if tasks[number].on_gpu:
                heapq.heappush(queue, (-remaining[number], number))
            else:
                begin(number)
        while queue and free:
            free -= 1
            begin(heapq.heappop(queue)[1])
        now, number = heapq.heappop(running)
        free += tasks[number].on_gpu
        left.done(number)
    return end


def remaining_paths(tasks: Sequence[DagTask], seconds: Sequence[float]) -> list[float]:
    """Seconds from the start of each task to the end of the run, with a GPU for every task."""
    paths = list(seconds)
    for task in reversed(tasks):
        for need in task.needs:
            paths[need] = max(paths[need], seconds[need] + paths[task.number])
    return paths


def critical_path(tasks: Sequence[DagTask], seconds: Sequence[float]) -> list[int]:
    """The longest chain of tasks, each waiting for the one before."""
    paths = remaining_paths(tasks, seconds)
    found = [max((task.number for task in tasks if not task.needs), key=paths.__getitem__)]
    while following := [task.number for task in tasks if found[-1] in task.needs]:
        found.append(max(following, key=paths.__getitem__))
    return found


def enough_pods(tasks: Sequence[DagTask], seconds: Sequence[float]) -> int:
    """The smallest number of GPU pods beyond which more do not help."""
    shortest = max(remaining_paths(tasks, seconds), default=0.0)
    most = max(1, sum(task.on_gpu for task in tasks))
    return next((n for n in range(1, most) if max(schedule(tasks, seconds, n)) <= ENOUGH * shortest), most)
