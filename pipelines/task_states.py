"""The state of every task of a run, from what its attempts reported to the store. Pure; status and follow show and use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from components.core.storage.task_status import Attempt, TaskStatus
from pipelines.dag import DagTask, TaskGraph

State = Literal["waiting", "running", "finished", "failed", "lost"]
"""`lost`: its last attempt has stopped reporting without an end, as when its process is killed or its pod is deleted. A task is
`finished` without a report of its end if a task that reads its outputs has started since: Kubeflow took them from its cache, or the
store did not take the last report."""


class TaskState(NamedTuple):
    """A task, its state, and its last attempt."""

    task: DagTask  # of the run's DAG
    state: State  # its state now
    last: TaskStatus | None = None  # the status of its last attempt; None if there is none
    attempts: int = 0  # how many there were
    ready: bool = True  # whether everything that it reads is done
    # time that its last attempt has worked so far; of a finished task, its longest: the others copied its outputs
    seconds: float = 0.0

    @property
    def failure(self) -> str:
        """Why it failed or was lost, without the pod's state; empty otherwise."""
        if self.state == "lost" and self.last:
            return f"it stopped reporting: its process was killed, or its pod or its node {self.last.node} is gone"
        return self.last.message if self.state == "failed" and self.last else ""


def task_states(
    graph: TaskGraph, attempts: Sequence[Attempt], since: datetime | None = None, ended: bool = False
) -> list[TaskState]:
    """The state of every task of a graph, in its order.

    Args:
        graph: the run's DAG.
        attempts: from StatusReader, the oldest first.
        since: when the run was last started, if known: a task that failed before waits for its next attempt.
        ended: whether the run has ended, so that nothing works any more.
    """
    found: dict[tuple[object, ...], list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.status.identity, []).append(attempt)
    own = {task: found.get((task.step, task.fold, task.cell_type, task.backbone), []) for task in graph.tasks}
    states: dict[int, State] = {}
    used: dict[int, datetime] = {}  # when a task began that reads the outputs of the one with this number
    for task in reversed(graph.tasks):
        state, last = _state(own[task], since, ended), own[task][-1].status if own[task] else None
        by = used.get(task.number)
        if by and state not in ("finished", "running") and (last is None or last.updated < by):
            state = "finished"
        states[task.number] = state
        if begun := last.started if last else by:
            for number in task.needs:
                used[number] = max(used.get(number, begun), begun)
    return [
        TaskState(
            task,
            states[task.number],
            own[task][-1].status if own[task] else None,
            len(own[task]),
            all(states[number] == "finished" for number in task.needs),
            _seconds(own[task], states[task.number]),
        )
        for task in graph.tasks
    ]


def _state(attempts: Sequence[Attempt], since: datetime | None, ended: bool) -> State:
    if not attempts:
        return "waiting"
    last = attempts[-1]
    if last.status.state == "finished":
        return "finished"
    if last.alive and not ended:
        return "running"
    if since is not None and last.status.updated < since:
        return "waiting"
    return "failed" if last.status.state == "failed" else "lost"


def _seconds(attempts: Sequence[Attempt], state: State) -> float:
    if state == "running":
        return attempts[-1].status.seconds + attempts[-1].silence
    finished = [each.status.seconds for each in attempts if each.status.state == "finished"]
    return max(finished or [each.status.seconds for each in attempts[-1:]], default=0.0)


def summary(states: Sequence[TaskState]) -> str:
    """Numbers of tasks by state: `18 of 60 tasks finished, 4 running, 1 failed, 37 waiting`."""
    counts = Counter(each.state for each in states)
    rest = [f"{counts[name]} {name}" for name in ("running", "failed", "lost", "waiting") if counts[name]]
    return ", ".join([f"{counts['finished']} of {len(states)} tasks finished", *rest])
