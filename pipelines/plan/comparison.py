"""How well the rates taken from a finished run describe that run: planned against taken seconds, step by step. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.plan.dag import GPU_STEPS, planned_tasks
from pipelines.plan.machines import Machines
from pipelines.plan.measured_run import MeasuredRun, is_fetched
from pipelines.plan.site_passes import processes, task_passes
from pipelines.plan.speeds import network_costs


@dataclass(frozen=True)
class StepComparison:
    """The tasks of a GPU step that the run computed.

    Attributes:
        step: its name.
        tasks: how many.
        taken: seconds of all of them.
        planned: the same, planned.
        least: smallest planned over taken seconds of a task.
        most: largest.
    """

    step: str
    tasks: int
    taken: float
    planned: float
    least: float
    most: float


def compare(run: MeasuredRun, machines: Machines) -> list[StepComparison]:
    """Plans a finished run by its own rates; tasks that it fetched are left out."""
    costs = network_costs(run.config, machines, run.wells.classes)
    speed = run.speed(machines, costs, run.config)
    found, gpus = [], processes(run.config)
    tasks = planned_tasks(run.config)
    for step in GPU_STEPS:
        pairs = []
        for task in tasks:
            taken = run.seconds_of(task)
            if task.step != step or taken is None:
                continue
            passes = task_passes(run.config, run.wells, task)
            seconds = [speed.seconds(step, p).value / gpus for p in passes]
            trained = sum(s for s, p in zip(seconds, passes, strict=True) if p.kind == "training")
            if not is_fetched(taken, trained):
                pairs.append((taken, speed.start_s + sum(seconds)))
        if pairs:
            ratios = [planned / taken for taken, planned in pairs]
            taken_sum, planned_sum = (sum(values) for values in zip(*pairs, strict=True))
            found.append(StepComparison(step, len(pairs), taken_sum, planned_sum, min(ratios), max(ratios)))
    return found
