"""When tasks of a DAG run on a number of GPU pods: list scheduling by the longest way to the end. Pure.

Tasks without a GPU never wait for one. Bounds that no schedule beats: the critical path, and all GPU work over the pods.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.plan.dag import PlannedTask

ENOUGH = 1.01
"""More pods help no more where the schedule is within this of the critical path."""


@dataclass(frozen=True)
class Schedule:
    """A schedule.

    Attributes:
        pods: GPU pods that run side by side.
        start: of each task, seconds.
        end: of each task, seconds.
        busy: share of the pods' time, from the first to the last GPU task, in which they work.
    """

    pods: int
    start: tuple[float, ...]
    end: tuple[float, ...]
    busy: float

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return max(self.end)


def schedule(tasks: Sequence[PlannedTask], seconds: Sequence[float], pods: int) -> Schedule:
    """Gives every free GPU pod the ready task with the longest way to the end.

    Args:
        tasks: each after what it needs; task n is the n-th.
        seconds: of each task.
        pods: GPU pods that run side by side, at least one.

    Source: critical-path list scheduling (Graham 1969): at most twice as long as the best schedule.
    """
    assert pods >= 1
    way = ways_to_the_end(tasks, seconds)
    waiting = [len(task.needs) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for task in tasks:
        for need in task.needs:
            followers[need].append(task.number)
    start, end = [0.0] * len(tasks), [0.0] * len(tasks)
    ready: list[tuple[float, int]] = []
    running: list[tuple[float, int]] = []
    free, now = pods, 0.0

    def begin(number: int) -> None:
        start[number], end[number] = now, now + seconds[number]
        heapq.heappush(running, (end[number], number))

    def arrive(number: int) -> None:
        if tasks[number].on_gpu:
            heapq.heappush(ready, (-way[number], number))
        else:
            begin(number)

    for task in tasks:
        if not task.needs:
            arrive(task.number)
    while ready or running:
        while ready and free:
            free -= 1
            begin(heapq.heappop(ready)[1])
        now, number = heapq.heappop(running)
        free += tasks[number].on_gpu
        for follower in followers[number]:
            waiting[follower] -= 1
            if not waiting[follower]:
                arrive(follower)
    of_gpus = [task.number for task in tasks if task.on_gpu]
    span = max((end[n] for n in of_gpus), default=0.0) - min((start[n] for n in of_gpus), default=0.0)
    work = sum(seconds[n] for n in of_gpus)
    return Schedule(pods, tuple(start), tuple(end), work / (span * pods) if span else 0.0)


def ways_to_the_end(tasks: Sequence[PlannedTask], seconds: Sequence[float]) -> list[float]:
    """Seconds from the start of each task to the end of all, were there GPUs for everything."""
    way = list(seconds)
    for task in reversed(tasks):
        for need in task.needs:
            way[need] = max(way[need], seconds[need] + way[task.number])
    return way


def critical_path(tasks: Sequence[PlannedTask], seconds: Sequence[float]) -> list[int]:
    """The chain of tasks that takes longest, each waiting for the one before."""
    way = ways_to_the_end(tasks, seconds)
    followers: dict[int, list[int]] = {}
    for task in tasks:
        for need in task.needs:
            followers.setdefault(need, []).append(task.number)
    path = [max((task.number for task in tasks if not task.needs), key=lambda n: way[n])]
    while path[-1] in followers:
        path.append(max(followers[path[-1]], key=lambda n: way[n]))
    return path


def enough_pods(tasks: Sequence[PlannedTask], seconds: Sequence[float]) -> int:
    """The smallest number of GPU pods beyond which more do not help."""
    shortest = max(ways_to_the_end(tasks, seconds), default=0.0)
    most = max(1, sum(task.on_gpu for task in tasks))
    for pods in range(1, most):
        if schedule(tasks, seconds, pods).seconds <= ENOUGH * shortest:
            return pods
    return most
