"""What the pod or container of a step asks for, by the configuration. Pure; kfp's form is pods.py, a plain Job's step_jobs.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from components.core.config import RunConfig
from components.core.config.cluster import Toleration
from pipelines.plan.dag import GPU_STEPS

Step = Literal["normalize", "pretrain", "finetune", "pseudo_label", "infer", "ensemble", "assign", "report"]
REQUIRED_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys of the store's Secret, and the variables that steps read them from."""
OPTIONAL_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN")
"""Keys that may be missing: Amazon's own S3 needs no endpoint, and keys that do not expire no token."""
SCRATCH = "/tmp"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Resources:
    """What one step asks for.

    Attributes:
        step: its name.
        cpu: cores.
        memory_gib: GiB, /dev/shm included.
        gpus: how many of `gpu_resource`.
        gpu_resource: name that a node offers them by.
        shm_gib: /dev/shm, GiB; 0 for the container runtime's own.
        volumes: GiB on the node's disk at most, by the path where the step writes.
        timeout_s: seconds until a pod is ended.
        retries: further tries.
        node_selector: labels of its nodes.
        tolerations: taints of its nodes.
        queue: Kueue LocalQueue; None for none.
        environment: variables, none of them secret.
    """

    step: str
    cpu: float
    memory_gib: float
    gpus: int
    gpu_resource: str
    shm_gib: float
    volumes: Mapping[str, float]
    timeout_s: int
    retries: int
    node_selector: Mapping[str, str]
    tolerations: tuple[Toleration, ...]
    queue: str | None
    environment: Mapping[str, str]

    @property
    def own_labels(self) -> dict[str, str]:
        """Labels that say what it is."""
        return {"app.kubernetes.io/name": "cellsignal", "app.kubernetes.io/component": self.step.replace("_", "-")}

    @property
    def labels(self) -> dict[str, str]:
        """Labels of what Kueue lets in: its pod, or the Job around it."""
        return {**self.own_labels, **({QUEUE_LABEL: self.queue} if self.queue else {})}


def resources_of(config: RunConfig, step: str) -> Resources:
    """What a step asks for: its pod on a cluster, its container under Docker.

    Args:
        config: of the run.
        step: one of Step.
    """
    cluster = config.cluster
    own = getattr(cluster.steps, step)
    on_gpu = own.gpus > 0
    nodes = own.node_selector
    if nodes is None:
        nodes = cluster.gpu_nodes if on_gpu else cluster.cpu_nodes
    spot = own.spot if own.spot is not None else cluster.spot and on_gpu
    tolerations = (
        *cluster.tolerations,
        *(cluster.gpu_tolerations if on_gpu else ()),
        *((cluster.spot_toleration,) if spot else ()),
        *own.tolerations,
    )
    volumes = {SCRATCH: own.scratch_gib}
    if config.loader.node_cache and step in GPU_STEPS:
        # A restricted pod gets no folder of the node: the cache is the pod's own, and serves its later epochs.
        volumes[config.loader.node_cache] = config.loader.node_cache_gib * 1.05
    threads = str(max(1, math.floor(own.cpu / max(1, own.gpus))))
    return Resources(
        step=step,
        cpu=own.cpu,
        memory_gib=own.memory_gib,
        gpus=own.gpus,
        gpu_resource=cluster.gpu_resource,
        shm_gib=own.shm_gib,
        volumes=MappingProxyType(volumes),
        timeout_s=round(own.timeout_hours * 3600),
        retries=own.retries,
        node_selector=MappingProxyType(dict(nodes)),
        tolerations=tuple(dict.fromkeys(tolerations)),
        queue=cluster.queue if on_gpu else None,
        environment=MappingProxyType({"OMP_NUM_THREADS": threads}),
    )


def cpu_quantity(cores: float) -> str:
    """Cores as Kubernetes writes them: 8, 500m."""
    return str(int(cores)) if cores == int(cores) else f"{math.ceil(cores * 1000)}m"


def memory_quantity(gib: float) -> str:
    """GiB as Kubernetes writes them: 32Gi, 512Mi."""
    return f"{int(gib)}Gi" if gib == int(gib) else f"{math.ceil(gib * 1024)}Mi"


def volume_name(path: str) -> str:
    """The name of the volume at a path."""
    return {SCRATCH: "scratch", "/dev/shm": "shm"}.get(path, "node-cache")


def toleration_fields(toleration: Toleration) -> dict[str, Any]:
    """A toleration as Kubernetes writes it."""
    return toleration.model_dump(exclude_none=True)
