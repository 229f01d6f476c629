"""What the container of a step may take of this machine, by the configuration. Pure, but for a look at the devices."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from components.core.config import RunConfig
from components.core.config.cluster import StepsConfig
from pipelines.cluster.pod_settings import resources_of


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
    asked = {step: resources_of(config, step) for step in StepsConfig.model_fields}
    return {
        step: Limits(memory_gib=one.memory_gib, shm_gib=one.shm_gib, gpus=has_gpus and one.gpus > 0)
        for step, one in asked.items()
    }
