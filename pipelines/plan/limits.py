"""What will not fit or will wait: GPU memory, a pod's memory, reading from object storage. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

from components.core.config import RunConfig
from pipelines.plan.dag import PlannedTask
from pipelines.plan.machines import Machines
from pipelines.plan.network_cost import NetworkCost
from pipelines.plan.screens import ScreenWells
from pipelines.plan.transfers import Transfer, packed_site_bytes, site_bytes

BASE_GIB = 4.0
"""Of a training process without images: torch, CUDA, tables."""
READ_AHEAD = 5
"""Batches in memory at a time: those that the loader is ahead, and the one in work."""
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


def batch_gigabytes(config: RunConfig, cost: NetworkCost, step: str, element: int) -> float:
    """GPU memory that a training step of one backbone takes, about, 1e9 bytes.

    Activations of the images that gradients go through, and float32 weights, gradients and Adam's two moments.
    """
    if step == "pretrain":
        images, copies = config.pretrain.batch_size, 4
    else:
        # The student sees the labelled wells twice, in two views of one backward pass; student, gradient, teacher.
        teacher = config.mean_teacher
        images, copies = 2 * teacher.labelled_batch + teacher.unlabelled_batch, 3
    return (images * cost.activation_bytes(element) + copies * cost.weight_bytes) / 1e9


def _gpu_memory(config: RunConfig, machines: Machines, costs: Mapping[str, NetworkCost]) -> list[str]:
    gpu, element = machines.gpus[machines.gpu], machines.assumed.activation_bytes
    found = []
    for step, sizes in (
        ("pretrain", "pretrain.batch_size"),
        ("finetune", "mean_teacher.labelled_batch and unlabelled_batch"),
    ):
        if step == "finetune" and not config.mean_teacher.enabled:
            continue
        needed = {name: batch_gigabytes(config, cost, step, element) for name, cost in costs.items()}
        name = max(needed, key=lambda name: needed[name])
        if needed[name] > 0.9 * gpu.memory_gb:
            precision = "bfloat16" if element == 2 else "float32"
            found.append(
                f"{step} of {name} needs about {needed[name]:.0f} GB of GPU memory in {precision} (estimated from its layers), "
                f"{machines.gpu} has {gpu.memory_gb:.0f}: make {sizes} smaller, or take another GPU"
            )
    return found


def _pod_memory(config: RunConfig, machines: Machines) -> list[str]:
    teacher = config.mean_teacher
    batch = max(
        config.pretrain.batch_size, teacher.labelled_batch + teacher.unlabelled_batch, config.predict.batch_size
    )
    batches = READ_AHEAD * batch * site_bytes(config) / 2**30
    needed, memory = BASE_GIB + config.loader.cache_gib + batches, machines.pods.gpu_pod.memory_gib
    if needed <= memory:
        return []
    return [
        f"a GPU pod needs about {needed:.0f} GiB of memory (loader.cache_gib {config.loader.cache_gib:g}, batches "
        f"{batches:.1f}, the process {BASE_GIB:g}), pods.gpu_pod has {memory:g}: make loader.cache_gib smaller"
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
    tasks = [task for task in computing if fetched[task][0].sites]
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
            f"{len(wells.fold_W) * wells.sites:,} sites"
        )
    return found
