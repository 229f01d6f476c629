"""The plan of a run: duration of every task, schedule, cost, warnings. Pure arithmetic; printed by output.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.network_size import NetworkSize, network_sizes
from pipelines.dag import GPU_STEPS, DagTask, training_graph
from pipelines.plan.memory import gpu_memory_warnings, pod_memory_warnings
from pipelines.plan.rates import Basis, Rates, weakest
from pipelines.plan.schedule import Schedule, critical_path, enough_pods, schedule
from pipelines.plan.work import NetworkWork, ScreenWells, packed_bytes, screen_wells, stored_bytes, task_work

MEASURED_FACTOR = 1.25
"""Error of measured rates, a factor: the tasks of a demo run were within a quarter of their plan."""
ASSUMED_FACTOR = 2.0
"""Error of rates that were measured on another GPU, a factor."""


@dataclass(frozen=True)
class TaskEstimate:
    """One task.

    Attributes:
        task: the task.
        work: its site passes by backbone.
        computing: seconds of them on one GPU, or of CPU work.
        seconds: duration of its pod: the start, and the work that the pod's GPUs share.
        basis: basis of `computing`.
        gpus: GPUs of its pod.
        stored: bytes that it leaves in object storage.
    """

    task: DagTask
    work: Mapping[str, NetworkWork]
    computing: float
    seconds: float
    basis: Basis
    gpus: int
    stored: float


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        measured: the folder of the run whose rates it uses; None for the shipped ones.
        tasks: in the order of the DAG.
        seconds: duration of each task.
        core_hours: of the pods without a GPU.
        basis: basis of the GPU-hours: that of their least certain part.
        critical_path: numbers of the chain of tasks that the run cannot be shorter than.
        enough_gpus: the number of GPUs beyond which more do not help.
        stored_bytes: what the run leaves in object storage.
        cost: by item, in prices.currency; pods release their GPU, so that the number of GPUs makes no difference.
        warnings: the limits of memory that the run exceeds.
    """

    wells: ScreenWells
    rates: Rates
    sizes: Mapping[str, NetworkSize]
    measured: Path | None
    tasks: Sequence[TaskEstimate]
    dag: Sequence[DagTask]
    seconds: Sequence[float]
    gpu_hours: float
    core_hours: float
    basis: Basis
    critical_path: Sequence[int]
    enough_gpus: int
    stored_bytes: float
    cost: Mapping[str, float]
    warnings: Sequence[str]

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.wells.config

    @property
    def gpu_hours_range(self) -> tuple[float, float]:
        """GPU-hours if the rates are too high or too low by their usual error."""
        factor = ASSUMED_FACTOR if self.basis == "assumed" else MEASURED_FACTOR
        return self.gpu_hours / factor, self.gpu_hours * factor

    @property
    def shortest(self) -> float:
        """Seconds of the critical path."""
        return sum(self.seconds[number] for number in self.critical_path)

    def on(self, gpus: int) -> Schedule:
        """The schedule on a number of GPUs, at least those of a pod."""
        return schedule(self.dag, self.seconds, gpus // pod_gpus(self.config))


def pod_gpus(config: RunConfig) -> int:
    """GPUs of a pod of a GPU step."""
    return max(1, config.compute.processes)


def make_plan(config: RunConfig, screen: Path | None, rates: Rates, measured: Path | None = None) -> RunPlan:
    """Plans a run.

    Args:
        config: the run.
        screen: folder of its screen; None for the sizes under `simulate`.
        rates: rates and prices.
        measured: folder of a finished run, whose rates replace those of steps with networks; None for none.

    Raises:
        InputError: wrong tables, a fold without wells to train on, or a folder that holds no finished run.
    """
    per_gmac = {} if measured is None else measured_seconds(measured)
    wells, sizes = screen_wells(config, screen), network_sizes(config)
    tasks, dag = [], training_graph(config).tasks
    for task in dag:
        work, gpus = task_work(wells, task), pod_gpus(config) if task.on_gpu else 0
        basis: Basis = "measured"
        if not work:
            computing, basis = _cpu_seconds(wells, rates, task)
        elif measured is None:
            computing, basis = _gpu_seconds(config, rates, sizes, work)
        elif task.step in per_gmac:
            computing = per_gmac[task.step] * _gmacs(sizes, work)
        else:
            raise InputError(f"--measured {measured}: that run had no {task.step}")
        taken = rates.pods.start_s + computing / max(1, gpus)
        tasks.append(TaskEstimate(task, work, computing, taken, basis, gpus, stored_bytes(wells, rates, sizes, task)))
    seconds, steps = [each.seconds for each in tasks], config.cluster.steps
    gpu_hours = sum(each.seconds * each.gpus for each in tasks) / 3600
    core_hours = sum(each.seconds * getattr(steps, each.task.step).cpu for each in tasks if not each.gpus) / 3600
    stored = sum(each.stored for each in tasks)
    return RunPlan(
        wells, rates, sizes, measured, tasks, dag, seconds, gpu_hours, core_hours,
        basis=weakest(each.basis for each in tasks if each.gpus),
        critical_path=critical_path(dag, seconds),
        enough_gpus=pod_gpus(config) * enough_pods(dag, seconds),
        stored_bytes=stored,
        cost=_cost(rates, gpu_hours, core_hours, stored),
        warnings=_warnings(config, sizes, rates),
    )  # fmt: skip


def _cost(rates: Rates, gpu_hours: float, core_hours: float, stored: float) -> dict[str, float]:
    prices = rates.prices
    gpu = gpu_hours * rates.gpus[rates.gpu].price_per_hour
    cpu, storage = core_hours * prices.cpu_core_hour, stored / 1e9 * prices.storage_gb_month
    spot, rest = gpu * prices.spot_factor, cpu + storage
    items = {"gpu": gpu, "gpu_spot": spot, "cpu": cpu, "storage_month": storage}
    return {**items, "total": gpu + rest, "total_spot": spot + rest}


def _warnings(config: RunConfig, sizes: Mapping[str, NetworkSize], rates: Rates) -> list[str]:
    """Limits of memory that a run exceeds; of the pods with GPUs, the one with least memory."""
    steps = [step for step in training_graph(config).counts() if step in GPU_STEPS]
    least = min(steps, key=lambda step: float(getattr(config.cluster.steps, step).memory_gib))
    on_gpu = gpu_memory_warnings(config, sizes, rates.gpu, rates.gpus[rates.gpu].memory_gb)
    return [*on_gpu, *pod_memory_warnings(config, least)]


def measured_seconds(folder: Path) -> dict[str, float]:
    """Seconds per 1e9 multiply-accumulates on one GPU, by step, of a finished run: from its config.yaml and lineage.json.

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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{label}: not the --out folder of a finished run ({type(error).__name__}: {error})") from None
    if screen is not None and not screen.is_dir():
        raise InputError(f"{label}: its screen {screen} is gone, so that its work cannot be counted")
    wells, sizes = screen_wells(config, screen), network_sizes(config)
    rates: dict[str, list[float]] = defaultdict(list)
    for task in training_graph(config).tasks:
        seconds = taken.get((task.step, task.fold, task.cell_type, task.backbone))
        if seconds and task.on_gpu:
            rates[task.step].append(pod_gpus(config) * seconds / _gmacs(sizes, task_work(wells, task)))
    if not rates:
        raise InputError(f"{label}: lineage.json has no durations of {', '.join(GPU_STEPS)}")
    return {step: statistics.median(of_step) for step, of_step in rates.items()}


def _gmacs(sizes: Mapping[str, NetworkSize], work: Mapping[str, NetworkWork]) -> float:
    """1e9 multiply-accumulates of a task."""
    return sum(sizes[name].macs * passes.forward_equivalents for name, passes in work.items()) / 1e9


def _gpu_seconds(
    config: RunConfig, rates: Rates, sizes: Mapping[str, NetworkSize], work: Mapping[str, NetworkWork]
) -> tuple[float, Basis]:
    """Seconds of a step with networks on one GPU. Rates are of bfloat16: half the bytes and operations of float32."""
    total, bases, slower = 0.0, [], 2.0 if config.compute.precision == "float32" else 1.0
    for name, passes in work.items():
        training, basis = rates.pass_seconds(sizes[name], config.screen.image_size, "training")
        forward, _ = rates.pass_seconds(sizes[name], config.screen.image_size, "forward")
        total += slower * (passes.training * training + passes.forward * forward)
        bases.append(weakest([basis, "scaled"]) if slower > 1 else basis)
    return total, weakest(bases)


def _cpu_seconds(wells: ScreenWells, rates: Rates, task: DagTask) -> tuple[float, Basis]:
    """Seconds of a step without networks."""
    cpu, config = rates.cpu, wells.config
    if task.step == "report":
        return cpu.report_s, "assumed"
    if task.step == "normalize":
        scale = config.cluster.steps.normalize.cpu * (cpu.image_size / config.screen.image_size) ** 2
        packing = wells.sites / (cpu.pack_sites_per_s * scale)
        writing = packed_bytes(wells, rates) / (rates.pods.store_mb_per_s * 1e6)
        return max(packing, writing), "scaled" if packing > writing else "assumed"
    share = 0.05 if task.step == "ensemble" else 0.95  # the mean of arrays takes far less than the assignment
    return share * cpu.assign_s_per_1000_wells * wells.count(task.cell_type) / 1000, "assumed"
