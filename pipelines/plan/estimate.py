"""The plan of a run: duration of every task, memory limits, cost. Pure arithmetic; printed by output.py."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.network_size import NetworkSize, network_sizes
from pipelines.dag import GPU_STEPS, DagTask, training_graph
from pipelines.plan.rates import Basis, Rates, weakest
from pipelines.plan.schedule import Schedule, critical_path, enough_pods, remaining_paths, schedule
from pipelines.plan.work import (
    NetworkWork,
    ScreenWells,
    packed_bytes,
    screen_wells,
    site_bytes,
    stored_bytes,
    task_work,
)

MEASURED_FACTOR = 1.25
"""Error of measured rates, a factor: the tasks of a demo run were within a quarter of their plan."""
ASSUMED_FACTOR = 2.0
"""Error of rates that were measured on another GPU, a factor."""
REUSED = 0.25
"""A task that took less than this share of its planned seconds reused finished outputs."""
PROCESS_GIB = 4.0
"""Memory of a training process without images: torch, CUDA, tables."""
BATCHES_HELD = 5
"""Batches in memory at a time: those read ahead and the one in use."""
MEMORY_SHARE = 0.9
"""Share of a GPU's memory that a step may take by this estimate."""


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
class MeasuredRun:
    """The speed of a finished run.

    Attributes:
        folder: the run's folder.
        seconds_per_gmac: by GPU step: seconds per 1e9 multiply-accumulates on one GPU.
        seconds_per_well: by CPU step: seconds of all its tasks, divided by the screen's wells.
        spread: largest factor between a task's duration and the one by its step's rate.
    """

    folder: Path
    seconds_per_gmac: Mapping[str, float]
    seconds_per_well: Mapping[str, float]
    spread: float


@dataclass(frozen=True)
class RunPlan:
    """The estimates of a run's tasks, in the order of the DAG, and their inputs."""

    wells: ScreenWells
    rates: Rates
    sizes: Mapping[str, NetworkSize]
    run: MeasuredRun | None
    tasks: tuple[TaskEstimate, ...]

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.wells.config

    @cached_property
    def dag(self) -> list[DagTask]:
        """The tasks themselves."""
        return [each.task for each in self.tasks]

    @cached_property
    def seconds(self) -> list[float]:
        """Duration of each task."""
        return [each.seconds for each in self.tasks]

    @cached_property
    def gpu_hours(self) -> float:
        """GPU-hours of all pods."""
        return sum(each.seconds * each.gpus for each in self.tasks) / 3600

    @cached_property
    def core_hours(self) -> float:
        """Core-hours of the pods without a GPU."""
        steps = self.config.cluster.steps
        hours: list[float] = [
            each.seconds * getattr(steps, each.task.step).cpu for each in self.tasks if not each.task.on_gpu
        ]
        return sum(hours) / 3600

    @cached_property
    def basis(self) -> Basis:
        """Basis of the GPU-hours: that of their least certain part."""
        return weakest(each.basis for each in self.tasks if each.task.on_gpu)

    @cached_property
    def factor(self) -> float:
        """Factor by which the GPU-hours may be too high or too low."""
        least = ASSUMED_FACTOR if self.basis == "assumed" else MEASURED_FACTOR
        return max(least, self.run.spread if self.run else 1.0)

    @property
    def stored_bytes(self) -> float:
        """Bytes that the run leaves in object storage."""
        return sum(each.stored for each in self.tasks)

    @cached_property
    def critical_path(self) -> list[int]:
        """The chain of tasks that the run cannot be shorter than."""
        return critical_path(self.dag, self.seconds)

    @cached_property
    def shortest(self) -> float:
        """Seconds of the critical path."""
        return max(remaining_paths(self.dag, self.seconds))

    @cached_property
    def enough_gpus(self) -> int:
        """The number of GPUs beyond which more do not help."""
        return self.pod_gpus * enough_pods(self.dag, self.seconds)

    @property
    def pod_gpus(self) -> int:
        """GPUs of a pod."""
        return pod_gpus(self.config)

    def on(self, gpus: int) -> Schedule:
        """The schedule on a number of GPUs, at least those of a pod."""
        return schedule(self.dag, self.seconds, gpus // self.pod_gpus)

    @cached_property
    def cost(self) -> dict[str, float]:
        """Cost by item, in prices.currency; pods release their GPU, so that the number of GPUs makes no difference."""
        prices = self.rates.prices
        gpu = self.gpu_hours * self.rates.gpus[self.rates.gpu].price_per_hour
        rest = {
            "cpu": self.core_hours * prices.cpu_core_hour,
            "storage_month": self.stored_bytes / 1e9 * prices.storage_gb_month,
        }
        spot, others = gpu * prices.spot_factor, sum(rest.values())
        return {"gpu": gpu, "gpu_spot": spot, **rest, "total": gpu + others, "total_spot": spot + others}

    @cached_property
    def warnings(self) -> list[str]:
        """The limits of memory that the run exceeds."""
        return [*_gpu_memory(self), *_pod_memory(self)]


def pod_gpus(config: RunConfig) -> int:
    """GPUs of a pod of a GPU step."""
    return max(1, config.compute.processes)


def make_plan(config: RunConfig, screen: Path | None, rates: Rates, measured: Path | None = None) -> RunPlan:
    """Plans a run.

    Args:
        config: the run.
        screen: folder of its screen; None for the sizes under `simulate`.
        rates: rates and prices.
        measured: folder of a finished run whose rates are used; None for those of `rates`.

    Raises:
        InputError: wrong tables, a fold without wells to train on, or a folder that holds no finished run.
    """
    run = None if measured is None else read_measured_run(measured)
    wells, sizes = screen_wells(config, screen), network_sizes(config)
    estimates = []
    for task in training_graph(config).tasks:
        work, gpus = task_work(wells, task), pod_gpus(config) if task.on_gpu else 0
        basis: Basis = "measured"
        if run is not None and task.on_gpu:
            if task.step not in run.seconds_per_gmac:
                raise InputError(f"--measured {run.folder}: that run had no {task.step}")
            computing = run.seconds_per_gmac[task.step] * _gmacs(sizes, work)
        elif run is not None and task.step in run.seconds_per_well:
            computing = run.seconds_per_well[task.step] * wells.count(task.cell_type)
        else:
            computing, basis = _gpu_seconds(config, rates, sizes, work) if work else _cpu_seconds(wells, rates, task)
        seconds = rates.pods.start_s + computing / max(1, gpus)
        stored = stored_bytes(wells, rates, sizes, task)
        estimates.append(TaskEstimate(task, work, computing, seconds, basis, gpus, stored))
    return RunPlan(wells, rates, sizes, run, tuple(estimates))


def read_measured_run(folder: Path) -> MeasuredRun:
    """The rates of a finished run, from its config.yaml and lineage.json.

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
    per_well: dict[str, float] = defaultdict(float)
    for task in training_graph(config).tasks:
        seconds = taken.get((task.step, task.fold, task.cell_type, task.backbone))
        if seconds and task.on_gpu:
            rates[task.step].append(seconds / _gmacs(sizes, task_work(wells, task)))
        elif seconds:
            per_well[task.step] += seconds / wells.count()
    if not rates:
        raise InputError(f"{label}: lineage.json has no durations of {', '.join(GPU_STEPS)}")
    usual = {step: statistics.median(of_step) for step, of_step in rates.items()}
    ratios = [rate / usual[step] for step, of_step in rates.items() for rate in of_step if rate > REUSED * usual[step]]
    per_gmac = {step: rate * pod_gpus(config) for step, rate in usual.items()}
    return MeasuredRun(folder, per_gmac, per_well, max(max(ratio, 1 / ratio) for ratio in ratios))


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


def gpu_memory_gb(config: RunConfig, size: NetworkSize, step: str, parts: int) -> float:
    """Approximate GPU memory of a training step of one backbone, 1e9 bytes.

    Activations of the images that gradients go through, and float32 copies of the weights: weights, gradients and Adam's two
    moments in pretrain; student, gradient and teacher after it.

    Args:
        config: batches and precision.
        size: the backbone.
        step: pretrain, or one of the mean teacher's.
        parts: into which a batch is split, over processes and by compute.accumulate.
    """
    teacher = config.mean_teacher
    if step == "pretrain":
        images, copies = config.pretrain.batch_size, 4
    else:
        images, copies = 2 * teacher.labelled_batch + teacher.unlabelled_batch, 3
    share = 1.0 if config.compute.precision == "float32" else 0.5
    return (math.ceil(images / parts) * size.activation_bytes * share + copies * 4 * size.parameters) / 1e9


def pod_memory_gib(config: RunConfig, processes: int) -> float:
    """Approximate memory of a training step's pod, GiB: processes with their caches, and batches."""
    teacher = config.mean_teacher
    batch = max(
        config.pretrain.batch_size, teacher.labelled_batch + teacher.unlabelled_batch, config.predict.batch_size
    )
    return (PROCESS_GIB + config.loader.cache_gib) * processes + BATCHES_HELD * batch * site_bytes(config) / 2**30


def _gpu_memory(plan: RunPlan) -> list[str]:
    config, gpu = plan.config, plan.rates.gpus[plan.rates.gpu]
    limit, found = MEMORY_SHARE * gpu.memory_gb, []
    for step in ("pretrain", "finetune") if config.mean_teacher.enabled else ("pretrain",):

        def needed(size: NetworkSize, accumulate: int, step: str = step) -> float:
            return gpu_memory_gb(config, size, step, plan.pod_gpus * accumulate)

        size = max(plan.sizes.values(), key=lambda size: needed(size, config.compute.accumulate))
        if (most := needed(size, config.compute.accumulate)) > limit:
            enough = next((k for k in range(2, 65) if needed(size, k) <= limit), None)
            advice = f"set compute.accumulate to {enough}" if enough else "use smaller batches"
            found.append(
                f"{step} of {size.backbone} needs about {most:.0f} GB of GPU memory (estimated from its layers), "
                f"{plan.rates.gpu} has {gpu.memory_gb:.0f}: {advice}, or another GPU"
            )
    return found


def _pod_memory(plan: RunPlan) -> list[str]:
    if plan.config.screen.image_size < 256:
        return []  # the figures are of full-sized images and GPUs
    steps, needed = plan.config.cluster.steps, pod_memory_gib(plan.config, plan.pod_gpus)
    memory = {task.step: getattr(steps, task.step).memory_gib for task in plan.dag if task.on_gpu}
    step = min(memory, key=memory.__getitem__)
    if memory[step] >= needed:
        return []
    return [
        f"a GPU pod needs about {needed:.0f} GiB of memory ({plan.pod_gpus} x ({PROCESS_GIB:g} + loader.cache_gib "
        f"{plan.config.loader.cache_gib:g}) and batches), cluster.steps.{step}.memory_gib is {memory[step]:g}: raise it, or lower "
        "loader.cache_gib"
    ]
