"""The plan of a run: duration of every task, schedule, cost, warnings. Pure arithmetic; printed by output.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import CHANNELS, RunConfig
from components.core.errors import InputError
from components.core.learning.network_size import network_sizes
from pipelines.dag import GPU_STEPS, DagTask, training_graph
from pipelines.plan.memory import gpu_memory_warnings, pod_memory_warnings, site_bytes
from pipelines.plan.rates import Basis, Rates, weakest
from pipelines.plan.schedule import critical_path, enough_pods, schedule
from pipelines.plan.work import NetworkWork, packed_bytes, screen_wells, stored_bytes, task_work

MEASURED_FACTOR = 1.25
"""Error of measured rates, a factor: the tasks of a demo run were within a quarter of their plan."""
ASSUMED_FACTOR = 2.0
"""Error of rates that were measured on another GPU, a factor."""


@dataclass(frozen=True)
class TaskEstimate:
    """One task: its site passes by backbone, seconds of its pod from the start, and bytes that it leaves in object storage."""

    task: DagTask
    work: Mapping[str, NetworkWork]
    seconds: float
    basis: Basis
    stored: float


class RunPlan:
    """The plan of a run; tasks are in the order of the DAG.

    Attributes:
        measured: the folder of the run whose durations it uses; None for `rates` alone.
        pod_gpus: GPUs of a pod of a GPU step.
        core_hours: of the pods without a GPU.
        basis: that of the least certain part of the GPU-hours.
        critical_path: the chain of tasks that the run cannot be shorter than.
        enough_gpus: the number of GPUs beyond which more do not help.
        stored: bytes that the run leaves in object storage.
        cost: by item, in prices.currency; pods release their GPU, so that the number of GPUs makes no difference.
    """

    def __init__(self, config: RunConfig, screen: Path | None, rates: Rates, measured: Path | None = None) -> None:
        """Plans a run; without a folder of its screen, for the sizes under `simulate`.

        Raises:
            InputError: wrong tables, folds that do not fit them, or a folder that holds no finished run.
        """
        self.rates, self.measured = rates, measured
        self._factors = measured_factors(measured, rates) if measured else {}
        self.wells = screen_wells(config, screen)
        self.config = config = self.wells.config
        self.sizes = network_sizes(config)
        self.pod_gpus = max(1, config.compute.processes)
        self._dag = training_graph(config).tasks
        self.tasks = [self._estimate(task) for task in self._dag]
        self._seconds = [each.seconds for each in self.tasks]
        on_gpu = [each for each in self.tasks if each.task.on_gpu]
        on_cpu = [(each, getattr(config.cluster.steps, each.task.step)) for each in self.tasks if not each.task.on_gpu]
        self.gpu_hours = self.pod_gpus * sum(each.seconds for each in on_gpu) / 3600
        self.core_hours = sum(each.seconds * own.cpu for each, own in on_cpu) / 3600
        self.basis = weakest(each.basis for each in on_gpu)
        self.critical_path = [self.tasks[n] for n in critical_path(self._dag, self._seconds)]
        self.enough_gpus = self.pod_gpus * enough_pods(self._dag, self._seconds)
        self.stored = sum(each.stored for each in self.tasks)
        self.cost = self._cost()
        self.warnings = self._warnings()

    @property
    def gpu_hours_range(self) -> tuple[float, float]:
        """GPU-hours if the rates are too high or too low by their usual error."""
        factor = ASSUMED_FACTOR if self.basis == "assumed" else MEASURED_FACTOR
        return self.gpu_hours / factor, self.gpu_hours * factor

    def seconds_on(self, gpus: int) -> float:
        """Duration of the run on a number of GPUs, at least those of a pod."""
        return max(schedule(self._dag, self._seconds, gpus // self.pod_gpus))

    def site_seconds(self, network: str) -> tuple[float, float, Basis]:
        """As Rates.site_seconds, at the run's precision. Rates are of bfloat16: half the bytes and operations of float32."""
        training, forward, basis = self.rates.site_seconds(self.sizes[network], self.config.screen.input_side)
        if self.config.compute.precision == "float32":
            return 2 * training, 2 * forward, weakest([basis, "scaled"])
        return training, forward, basis

    def _estimate(self, task: DagTask) -> TaskEstimate:
        work, start = task_work(self.wells, task), self.rates.pods.start_s
        stored = stored_bytes(self.wells, self.rates, self.sizes, task)
        if not task.on_gpu:
            computing, basis = self._cpu_seconds(task)
            return TaskEstimate(task, work, start + computing, basis, stored)
        computing, bases = 0.0, []
        for name, passes in work.items():
            training, forward, basis = self.site_seconds(name)
            computing += passes.training * training + passes.forward * forward
            bases.append(basis)
        if self.measured is not None:
            if task.step not in self._factors:
                raise InputError(f"--measured {self.measured}: that run had no {task.step}")
            computing, bases = computing * self._factors[task.step], ["measured"]
        return TaskEstimate(task, work, start + computing / self.pod_gpus, weakest(bases), stored)

    def _cpu_seconds(self, task: DagTask) -> tuple[float, Basis]:
        """Seconds of a step without networks."""
        cpu, config, wells = self.rates.cpu, self.config, self.wells
        if task.step == "report":
            return cpu.report_s, "assumed"
        if task.step == "normalize":
            scale = (
                config.cluster.steps.normalize.cpu * len(CHANNELS) * cpu.image_size**2 / site_bytes(config, wells.dtype)
            )
            packing = wells.sites / (cpu.pack_sites_per_s * scale)
            writing = packed_bytes(wells, self.rates) / (self.rates.pods.store_mb_per_s * 1e6)
            return max(packing, writing), "scaled" if packing > writing else "assumed"
        share = 0.05 if task.step == "ensemble" else 0.95  # the mean of arrays takes far less than the assignment
        return share * cpu.assign_s_per_1000_wells * wells.count(task.cell_type) / 1000, "assumed"

    def _cost(self) -> dict[str, float]:
        prices = self.rates.prices
        gpu = self.gpu_hours * self.rates.gpus[self.rates.gpu].price_per_hour
        cpu, storage = self.core_hours * prices.cpu_core_hour, self.stored / 1e9 * prices.storage_gb_month
        spot, rest = gpu * prices.spot_factor, cpu + storage
        items = {"gpu": gpu, "gpu_spot": spot, "cpu": cpu, "storage_month": storage}
        return {**items, "total": gpu + rest, "total_spot": spot + rest}

    def _warnings(self) -> list[str]:
        """Limits of memory that the run exceeds; of the pods with GPUs, the one with least memory."""
        steps, gpu = {task.step for task in self._dag if task.on_gpu}, self.rates.gpu
        least = min(sorted(steps), key=lambda step: float(getattr(self.config.cluster.steps, step).memory_gib))
        on_gpu = gpu_memory_warnings(self.config, self.sizes, gpu, self.rates.gpus[gpu].memory_gb)
        return [*on_gpu, *pod_memory_warnings(self.config, least, self.wells.dtype)]


def measured_factors(folder: Path, rates: Rates) -> dict[str, float]:
    """How many times longer the steps of a finished run took than its plan, by its config.yaml and lineage.json.

    Raises:
        InputError: no such folder, no finished run in it, or its screen is gone.
    """
    label = f"--measured {folder}"
    taken: dict[tuple[Any, ...], float] = defaultdict(float)
    try:
        config = RunConfig.load(str(folder / "config.yaml"))
        lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
        for step in lineage["steps"]:
            key = step["step"], step.get("fold"), step.get("cell_type"), step.get("backbone")
            taken[key] += float(step["seconds"])
        screen = None if any(step == "simulate" for step, *_ in taken) else Path(str(lineage["screen"]))
    except InputError as error:
        raise InputError(f"{label}: not the --out folder of a finished run ({error})") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{label}: not the --out folder of a finished run (lineage.json has no durations)") from None
    if screen is not None and not screen.is_dir():
        raise InputError(f"{label}: its screen {screen} is gone, so that its work cannot be counted")
    factors: dict[str, list[float]] = defaultdict(list)
    for planned in RunPlan(config, screen, rates).tasks:
        task = planned.task
        seconds = taken.get((task.step, task.fold, task.cell_type, task.backbone))
        if seconds and task.on_gpu:
            factors[task.step].append(seconds / (planned.seconds - rates.pods.start_s))
    if not factors:
        raise InputError(f"{label}: lineage.json has no durations of {', '.join(GPU_STEPS)}")
    return {step: statistics.median(of_step) for step, of_step in factors.items()}
