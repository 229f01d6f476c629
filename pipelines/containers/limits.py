"""What the container of a step may take of this machine, by the configuration. Pure, but for a look at the devices."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from components.core.config import RunConfig

STEPS = ("normalize", "pretrain", "finetune", "pseudo_label", "infer", "ensemble", "assign", "report")


class Limits(TypedDict):
    """Of one step's container.

    memory_gib: GiB, beyond which it is killed; /dev/shm counts.
    shm_gib: size of /dev/shm, GiB; 0 for the engine's own.
    gpus: whether it gets this machine's GPUs.
    """

    memory_gib: float
    shm_gib: float
    gpus: bool


def limits_of(config: RunConfig) -> dict[str, Limits]:
    """The limits of every step's container: those of its pod on a cluster, but that a step takes all GPUs there are."""
    has_gpus = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    return {step: _limits(config, step, has_gpus) for step in STEPS}


def _limits(config: RunConfig, step: str, has_gpus: bool) -> Limits:
    trains = step in ("pretrain", "finetune", "pseudo_label", "infer")
    return Limits(memory_gib=32.0 if trains else 8.0, shm_gib=1.0 if trains else 0.0, gpus=trains and has_gpus)
