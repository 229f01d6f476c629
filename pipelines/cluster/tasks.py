"""What a run's tasks do, from the flat list of workflow nodes that the API gives. Pure.

A step's task is the node of its own name (finetune-2 is the second finetune of an iteration); its driver and executor pods
have nodes besides, which count nowhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = ("SUCCEEDED", "SKIPPED")
"""SKIPPED is a task whose outputs KFP had in its cache."""


@dataclass
class StepTasks:
    """Tasks of one step.

    Attributes:
        total: that the run will have.
        states: how many are in each state.
    """

    total: int
    states: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """How many have their outputs."""
        return sum(self.states[state] for state in DONE)

    def told(self) -> str:
        """In words, for example `3 of 10 done, 2 running`."""
        parts = [f"{self.done} of {self.total} done"]
        parts += [
            f"{self.states[state]} {state.lower()}" for state in ("RUNNING", "PENDING", "FAILED") if self.states[state]
        ]
        return ", ".join(parts)


def tasks_by_step(run: Any, totals: Mapping[str, int]) -> dict[str, StepTasks]:
    """How far each step is.

    Args:
        run: as the API gives it.
        totals: tasks by step that the run will have; steps without any are left out.
    """
    found = {step: StepTasks(total) for step, total in totals.items() if total}
    for node in _nodes(run):
        step = _step(node.display_name or "")
        if step in found:
            found[step].states[str(node.state)] += 1
    return found


def failed_tasks(run: Any, totals: Mapping[str, int]) -> list[str]:
    """Names of the tasks that failed, the first to fail first; of other nodes only where no task of a step did."""
    failed = [node for node in _nodes(run) if str(node.state) == "FAILED"]
    failed.sort(key=lambda node: str(node.end_time or ""))
    steps = [
        node.display_name if " " in node.display_name else name
        for node in failed
        for name in [_step(node.display_name or "")]
        if name in totals
    ]
    drivers = [
        f"{name} (before it started)"
        for node in failed
        for name in [_step((node.display_name or "").replace("-driver", ""))]
        if name in totals and (node.display_name or "").endswith("driver")
    ]
    return list(dict.fromkeys(steps)) or list(dict.fromkeys(drivers))


def waiting_pods(run: Any) -> frozenset[str]:
    """What tells the pods apart that have not started: no node, no image, no Secret. The node of their task runs meanwhile."""
    return frozenset(
        str(node.task_id or node.pod_name or node.display_name) for node in _nodes(run) if str(node.state) == "PENDING"
    )


def message_of(run: Any) -> str:
    """What the API says of a failure, which is often nothing."""
    errors = [run.error] + [node.error for node in _nodes(run) if str(node.state) == "FAILED"]
    return next((" ".join(str(error.message).split()) for error in errors if error is not None and error.message), "")


def _nodes(run: Any) -> list[Any]:
    return (run.run_details.task_details or []) if run.run_details else []


def _step(name: str) -> str:
    """Pretrain of `pretrain`, `pretrain-2` and, where it has a display name, `pretrain xception`."""
    # New plates are predicted by further functions of the same steps.
    return re.sub(r"-\d+$", "", name.split(" ")[0]).replace("-", "_").removesuffix("_new_plates")
