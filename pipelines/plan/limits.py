"""What will not fit or will wait: GPU memory, a pod's memory, reading from object storage. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping

from components.core.config import RunConfig
from pipelines.plan.dag import PlannedTask
from pipelines.plan.machines import Machines
from pipelines.plan.network_cost import NetworkCost
from pipelines.plan.screens import ScreenWells
from pipelines.plan.site_passes import processes
from pipelines.plan.speeds import element_bytes
from pipelines.plan.transfers import Transfer, packed_site_bytes, site_bytes

BASE_GIB = 4.0
"""Of a training process without images: torch, CUDA, tables."""
READ_AHEAD = 5
"""Batches in memory at a time: those that the loader is ahead, and the one in work."""
MEMORY_SHARE = 0.9
"""Of a GPU's memory that a step may take by this estimate."""
BUSY_STORE = 100e6
"""Bytes a second from object storage, of one pod, worth a word."""


def warnings_of(
    config: RunConfig,
    wells: ScreenWells,
    machines: Machines,
    costs: Mapping[str, NetworkCost],
    computing: Mapping[PlannedTask, float],
    fetched: Mapping[PlannedTask, tuple[Transfer, float]],
) -> list[str]:
    """One sentence each.

    Args:
        config: the run.
        wells: its screen.
        machines: GPU and pods.
        costs: of its networks.
        computing: seconds of each task's passes.
        fetched: traffic of each task, and seconds of its reading.
    """
    return [
        *_gpu_memory(config, machines, costs),
        *_pod_memory(config, machines),
        *_reading(config, wells, machines, computing, fetched),
    ]


def batch_gigabytes(config: RunConfig, cost: NetworkCost, step: str, parts: int) -> float:
    """GPU memory that a training step of one backbone takes, about, 1e9 bytes.

    Activations of the images that gradients go through, and float32 weights, gradients and Adam's two moments.

    Args:
        config: batches and precision.
        cost: of the backbone.
        step: pretrain, or a mean teacher's.
        parts: that a batch is cut into.
    """
    if step == "pretrain":
        images, copies = config.pretrain.batch_size, 4
    else:
        # The student sees the labelled wells twice, in two views of one backward pass; student, gradient, teacher.
        teacher = config.mean_teacher
        images, copies = 2 * teacher.labelled_batch + teacher.unlabelled_batch, 3
    return (math.ceil(images / parts) * cost.activation_bytes(element_bytes(config)) + copies * cost.weight_bytes) / 1e9


def _gpu_memory(config: RunConfig, machines: Machines, costs: Mapping[str, NetworkCost]) -> list[str]:
    room = MEMORY_SHARE * machines.gpus[machines.gpu].memory_gb
    own, accumulate = processes(config), config.compute.accumulate
    found = []
    for step in ("pretrain", "finetune"):
        if step == "finetune" and not config.mean_teacher.enabled:
            continue
        needed = {name: batch_gigabytes(config, cost, step, own * accumulate) for name, cost in costs.items()}
        name = max(needed, key=lambda name: needed[name])
        if needed[name] <= room:
            continue
        suffices = next((k for k in range(2, 65) if batch_gigabytes(config, costs[name], step, own * k) <= room), None)
        advice = f"set compute.accumulate to {suffices}" if suffices else "take smaller batches"
        found.append(
            f"{step} of {name} needs about {needed[name]:.0f} GB of GPU memory (estimated from its layers), "
            f"{machines.gpu} has {machines.gpus[machines.gpu].memory_gb:.0f}: {advice}, or take another GPU"
        )
    return found


def pod_gib(config: RunConfig, processes: int) -> float:
    """Memory that the pod of a training step takes, about, GiB.

    Args:
        config: caches and batches.
        processes: of the step.
    """
    return (BASE_GIB + config.loader.cache_gib) * processes + _batches_gib(config)


def _batches_gib(config: RunConfig) -> float:
    teacher = config.mean_teacher
    batch = max(
        config.pretrain.batch_size, teacher.labelled_batch + teacher.unlabelled_batch, config.predict.batch_size
    )
    return READ_AHEAD * batch * site_bytes(config) / 2**30


def _pod_memory(config: RunConfig, machines: Machines) -> list[str]:
    own = processes(config)
    batches, needed = _batches_gib(config), pod_gib(config, own)
    memory = machines.pods.gpu_pod.memory_gib
    if needed <= memory:
        return []
    each = " each" if own > 1 else ""
    return [
        f"a GPU pod needs about {needed:.0f} GiB of memory ({own} process{'es' if own > 1 else ''} of {BASE_GIB:g}{each}, "
        f"loader.cache_gib {config.loader.cache_gib:g}{each}, batches {batches:.1f}), pods.gpu_pod has {memory:g}: make "
        "loader.cache_gib smaller, or set the memory that your pods have"
    ]


def _reading(
    config: RunConfig,
    wells: ScreenWells,
    machines: Machines,
    computing: Mapping[PlannedTask, float],
    fetched: Mapping[PlannedTask, tuple[Transfer, float]],
) -> list[str]:
    """Tasks that wait for their sites, and how much the busiest one fetches."""
    found = []
    tasks = [task for task in computing if fetched[task][0].sites and computing[task] > 0]
    late = [task for task in tasks if fetched[task][1] > computing[task]]
    if late:
        worst = max(late, key=lambda task: fetched[task][1] / computing[task])
        found.append(
            f"{len(late)} of {len(tasks)} GPU tasks wait for their sites, most of all {worst.name}: "
            f"{fetched[worst][1] / 3600:.1f} h of reading, {computing[worst] / 3600:.1f} h of computing; more "
            "pods.loader_threads, or a larger loader.cache_gib"
        )
    one = packed_site_bytes(config, machines)
    rates = {task: fetched[task][0].sites * one / max(computing[task], fetched[task][1]) for task in tasks}
    if max(rates.values(), default=0.0) > BUSY_STORE:
        busy = max(rates, key=lambda task: rates[task])
        held = config.loader.cache_gib * 2**30 / site_bytes(config)
        found.append(
            f"a GPU pod fetches up to {rates[busy] / 1e6:.0f} MB a second from object storage ({busy.name}), for "
            f"loader.cache_gib {config.loader.cache_gib:g} holds {held:,.0f} of the screen's "
            f"{len(wells.fold_W) * wells.sites:,} sites; more of it, or loader.node_cache on the node's own disk, reads less"
        )
    return found
