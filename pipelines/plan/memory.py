"""Warnings about memory that training needs, on a GPU and in its pod: rough arithmetic from layers, batches and caches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from components.core.config import RunConfig
from components.core.config.cluster import StepResources
from components.core.learning.network_size import NetworkSize
from components.core.storage.manifest import PixelType

PROCESS_GIB = 4.0
"""Memory of a training process without images: torch, CUDA, tables."""
BATCHES_HELD = 5
"""Batches in memory at a time: those read ahead and the one in use."""
MEMORY_SHARE = 0.9
"""Share of a GPU's memory that a step may take by this estimate."""


def site_bytes(config: RunConfig, dtype: PixelType = "uint8") -> int:
    """Bytes of a decoded site; the configuration alone does not say the type of its pixels."""
    return len(config.screen.channel_names) * math.prod(config.screen.image_shape) * (2 if dtype == "uint16" else 1)


def pod_memory_warnings(config: RunConfig, step: str, dtype: PixelType = "uint8") -> Iterator[str]:
    """A warning if the pod of a GPU step has less memory than its processes, their caches and batches take."""
    own: StepResources = getattr(config.cluster.steps, step)
    processes, teacher = config.compute.processes or max(1, own.gpus), config.mean_teacher
    batch = max(
        config.pretrain.batch_size, teacher.labelled_batch + teacher.unlabelled_batch, config.predict.batch_size
    )
    needed = (PROCESS_GIB + config.loader.cache_gib) * processes + BATCHES_HELD * batch * site_bytes(
        config, dtype
    ) / 2**30
    needed += own.shm_gib
    if (
        min(config.screen.image_shape) >= 256 and needed > own.memory_gib
    ):  # the figures are of full-sized images and GPUs
        yield (
            f"{step} needs about {needed:.0f} GiB of memory ({processes} process{'es' if processes > 1 else ''}, "
            f"loader.cache_gib {config.loader.cache_gib:g} each), cluster.steps.{step}.memory_gib is {own.memory_gib:g}: raise "
            "it, or lower loader.cache_gib"
        )


def gpu_memory_warnings(
    config: RunConfig, sizes: Mapping[str, NetworkSize], gpu: str, memory_gb: float
) -> Iterator[str]:
    """A warning for each kind of training step that needs more than a GPU's memory.

    It holds activations of the images that gradients go through, and float32 copies of the weights: weights, gradients and Adam's
    two moments in pretrain; student, gradient and teacher after it.
    """
    teacher, share = config.mean_teacher, 1.0 if config.compute.precision == "float32" else 0.5

    def needed(size: NetworkSize, images: int, copies: int, accumulate: int) -> float:
        per_pass = math.ceil(images / (max(1, config.compute.processes) * accumulate))
        return (per_pass * size.activation_bytes * share + copies * 4 * size.parameters) / 1e9

    steps = {"pretrain": (config.pretrain.batch_size, 4)}
    if teacher.enabled:
        steps["finetune"] = 2 * teacher.labelled_batch + teacher.unlabelled_batch, 3
    for step, (images, copies) in steps.items():
        most, name = max(
            (needed(size, images, copies, config.compute.accumulate), name) for name, size in sizes.items()
        )
        if most <= MEMORY_SHARE * memory_gb:
            continue
        fits = (k for k in range(2, 65) if needed(sizes[name], images, copies, k) <= MEMORY_SHARE * memory_gb)
        enough = next(fits, None)
        advice = f"set compute.accumulate to {enough}" if enough else "use smaller batches"
        yield (
            f"{step} of {name} needs about {most:.0f} GB of GPU memory (estimated from its layers), {gpu} has {memory_gb:.0f}: "
            f"{advice}, or another GPU"
        )
