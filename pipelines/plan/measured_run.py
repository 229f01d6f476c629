"""The rates that a finished run had, from what its folder holds: config.yaml, lineage.json (seconds of tasks), metrics.json.

Training's rates are metrics.json's throughput. What a task took beyond its training is a start and its forward passes; a
least-squares line through all tasks gives both. Tasks that were fetched instead of computed take no time and are left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.plan.dag import GPU_STEPS, PlannedTask, planned_tasks
from pipelines.plan.machines import Machines
from pipelines.plan.network_cost import NetworkCost
from pipelines.plan.screens import ScreenWells, screen_wells
from pipelines.plan.site_passes import Passes, processes, task_passes
from pipelines.plan.speeds import RunSpeed, macs, network_costs

FETCHED = 0.5
"""A task that took less than this share of its training's seconds was fetched, at least in part."""
RATE = "_sites_per_s"
"""Ends the names of rates in metrics.json, after the step's."""
PER_MAC = (0.25, 2.0)
"""Seconds of inference for a multiply-accumulate, in those of training: a fit beyond this rests on noise (0.6 in a demo run)."""


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run.

    Attributes:
        folder: where it lies.
        config: its whole configuration.
        wells: its screen.
        seconds: of its tasks, by (step, fold, cell type, backbone).
        throughput: sites a second of training, by step.
    """

    folder: Path
    config: RunConfig
    wells: ScreenWells
    seconds: Mapping[tuple[str, int | None, str | None, str | None], float]
    throughput: Mapping[str, float]

    def seconds_of(self, task: PlannedTask) -> float | None:
        """What a task took; None where the run does not tell."""
        return self.seconds.get((task.step, task.fold, task.cell_type, task.backbone))

    def speed(self, machines: Machines, costs: Mapping[str, NetworkCost], config: RunConfig) -> RunSpeed:
        """Its rates, for a plan with these networks.

        Args:
            machines: describes networks that are not known here.
            costs: of the planned networks.
            config: the planned configuration.

        Raises:
            InputError: it tells too little.
        """
        own = network_costs(self.config, machines, self.wells.classes)
        work = {task: task_passes(self.config, self.wells, task) for task in planned_tasks(self.config)}
        training = {
            step: sum(p.sites for passes in of_step for p in passes) / self.throughput[step] / total
            for step in GPU_STEPS
            if step in self.throughput
            and (of_step := [_of_kind(passes, "training") for task, passes in work.items() if task.step == step])
            and (total := sum(macs(p, own) for passes in of_step for p in passes))
        }
        if not training:
            raise InputError(f"--measured {self.folder}: metrics.json tells no throughput of a training step")
        rest, forward, all_of_it = [], [], []
        for task, passes in work.items():
            taken = self.seconds_of(task)
            if taken is None or task.step not in GPU_STEPS:
                continue
            trained = training.get(task.step, 0.0) * sum(macs(p, own) for p in _of_kind(passes, "training"))
            if is_fetched(taken, trained):
                continue
            rest.append(taken - trained)
            all_of_it.append(taken)
            forward.append(sum(macs(p, own) for p in _of_kind(passes, "forward")))
        if not rest:
            raise InputError(
                f"--measured {self.folder}: lineage.json tells no seconds of a GPU step that was computed, not fetched; "
                "give a run that computed them"
            )
        usual = float(np.median(list(training.values())))
        bounds = (PER_MAC[0] * usual, PER_MAC[1] * usual)
        start, per_mac = _line(np.array(forward), np.array(rest), 1.0 / np.array(all_of_it), bounds)
        # Processes share a task's passes: a plan divides them by its own number.
        shared = processes(self.config)
        training = {step: seconds * shared for step, seconds in training.items()}
        same = self.config.screen.image_size == config.screen.image_size and own == costs
        return RunSpeed(str(self.folder), training, per_mac * shared, start, costs, same)

    def cpu_seconds(self, step: str) -> float | None:
        """Seconds of all tasks of a step that runs no networks; None where the run does not tell."""
        known = [seconds for (of, *_), seconds in self.seconds.items() if of == step]
        return sum(known) if known else None


def read_measured_run(folder: Path) -> MeasuredRun:
    """Reads a finished run's folder.

    Raises:
        InputError: no such folder, no finished run in it, or a screen that is not there any more.
    """
    if not folder.is_dir():
        raise InputError(f"--measured {folder}: no such run folder")
    for name in ("config.yaml", "lineage.json", "metrics.json"):
        if not (folder / name).is_file():
            raise InputError(f"--measured {folder}: has no {name}; give the --out folder of a finished run")
    config = RunConfig.load(str(folder / "config.yaml"))
    lineage, metrics = (_read_json(folder / name) for name in ("lineage.json", "metrics.json"))
    seconds: dict[tuple[str, int | None, str | None, str | None], float] = defaultdict(float)
    try:
        for step in lineage["steps"]:
            key = (str(step["step"]), step.get("fold"), step.get("cell_type"), step.get("backbone"))
            seconds[key] += float(step["seconds"])
        throughput = {
            name.removesuffix(RATE): float(rate)
            for name, rate in metrics["throughput"].items()
            if name.endswith(RATE) and rate > 0
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"--measured {folder}: lineage.json or metrics.json lacks the seconds of steps or the throughput "
            f"({type(error).__name__}: {error})"
        ) from None
    simulated = any(step == "simulate" for step, *_ in seconds)
    screen = None if simulated else Path(str(lineage.get("screen", "")))
    if screen is not None and not screen.is_dir():
        raise InputError(f"--measured {folder}: its screen {screen} is not there, so that its work cannot be counted")
    return MeasuredRun(folder, config, screen_wells(config, screen), dict(seconds), throughput)


def is_fetched(taken: float, trained: float) -> bool:
    """Whether a task was fetched instead of computed.

    Args:
        taken: its seconds.
        trained: seconds of its training by the run's throughput.
    """
    return taken < FETCHED * trained


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"--measured: {path} is not valid JSON; give the --out folder of a finished run") from None
    if not isinstance(found, dict):
        raise InputError(f"--measured: {path} holds no mapping; give the --out folder of a finished run")
    return found


def _of_kind(passes: list[Passes], kind: str) -> list[Passes]:
    return [p for p in passes if p.kind == kind]


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float]:
    """Intercept, not below zero, and slope, within bounds, of the weighted least-squares line.

    Args:
        x: multiply-accumulates of each task's forward passes.
        y: its seconds beside training.
        weight: of its error; one over its seconds, so that relative errors count.
        bounds: of the slope, seconds a multiply-accumulate.
    """

    def start(slope: float) -> float:
        """The best intercept of a slope."""
        return max(0.0, float(np.average(y - slope * x, weights=weight**2)))

    def error(slope: float) -> float:
        return float(((y - slope * x - start(slope)) ** 2 * weight**2).sum())

    # The error is convex in the slope, so that a fine enough row of slopes holds nearly the best.
    slope = min(np.geomspace(*bounds, num=400).tolist(), key=error)
    return start(slope), slope
