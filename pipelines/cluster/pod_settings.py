"""What the pod of a step requests, and how it is set on a KFP task. kfp is imported only to change a task.

KFP itself drops all capabilities, forbids privilege escalation and sets seccomp's RuntimeDefault for every task's container,
and mounts writable folders for what it copies. It has no field for a read-only root, an ephemeral-storage request or a
task's own service account: k8s/base covers the last two with a LimitRange and the run's account.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.config import RunConfig
from components.core.config.cluster import ClusterConfig, StepResources
from components.core.storage.run_records import predicting_name
from components.core.storage.task_status import NODE_VARIABLE
from pipelines.dag import GPU_STEPS, TaskGraph

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

REQUIRED_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys of the store's Secret, and the environment variables of the steps."""
OPTIONAL_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN")
"""Keys that may be missing: Amazon S3 needs no endpoint, permanent keys need no token."""
SCRATCH = "/tmp"
RETRY: dict[str, Any] = {
    "backoff_duration": "120s",
    "backoff_factor": 1.0,
    "backoff_max_duration": f"{365 * 24 * 3600}s",
}
"""Two minutes before each retry. The installation's retryPolicy decides which failures are retried, and `set_retry` has no field
for it: with KFP's own manifests (OnError) a deleted pod is, and a process that fails or is killed is not. `submit --wait` submits
such a run again. `backoff_max_duration` limits the time since the first attempt began, including queueing and work (KFP's default
is an hour)."""


class EmptyDir(NamedTuple):
    """A folder of a pod: the volume's name, its path, its largest size, and `Memory` or None for the node's disk."""

    name: str
    path: str
    gib: float
    medium: str | None = None


@dataclass(frozen=True)
class Resources:
    """What a pod requests: the section of its step or steps, and what the sections `cluster` and `loader` add.

    `queue_label` is the label of the object that Kueue admits: the pod, or the Job around it. No variable is secret.
    """

    own: StepResources
    spot: bool
    folders: tuple[EmptyDir, ...]
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    labels: dict[str, str]
    queue_label: dict[str, str]
    environment: dict[str, str]

    @property
    def timeout_s(self) -> int:
        """Seconds after which the pod is stopped."""
        return round(self.own.timeout_hours * 3600)


def resources_of(config: RunConfig, *steps: str) -> Resources:
    """What a pod requests by the configuration that runs a step, or some steps one after another."""
    cluster = config.cluster
    own = _most_demanding([getattr(cluster.steps, step) for step in steps])
    on_gpu = own.gpus > 0
    spot = cluster.spot and on_gpu if own.spot is None else own.spot
    folders = [EmptyDir("shm", "/dev/shm", own.shm_gib, "Memory")] if own.shm_gib else []
    folders.append(EmptyDir("scratch", SCRATCH, own.scratch_gib))
    if config.loader.node_cache and steps[0] in GPU_STEPS:
        # The restricted pod security standard forbids a hostPath: the cache belongs to the pod and serves its later epochs.
        folders.append(EmptyDir("node-cache", config.loader.node_cache, config.loader.node_cache_gib * 1.05))
    nodes = own.node_selector
    if nodes is None:
        nodes = cluster.gpu_nodes if on_gpu else cluster.cpu_nodes
    tolerations = (
        *cluster.tolerations,
        *(cluster.gpu_tolerations if on_gpu else ()),
        *((cluster.spot_toleration,) if spot else ()),
        *own.tolerations,
    )
    return Resources(
        own=own,
        spot=spot,
        folders=tuple(folders),
        node_selector=dict(nodes),
        tolerations=[each.model_dump(exclude_none=True) for each in dict.fromkeys(tolerations)],
        labels={
            "app.kubernetes.io/name": "cellsignal",
            "app.kubernetes.io/component": "-".join(dict.fromkeys(steps)).replace("_", "-"),
        },
        queue_label={"kueue.x-k8s.io/queue-name": cluster.queue} if cluster.queue and on_gpu else {},
        environment={"OMP_NUM_THREADS": str(max(1, math.floor(own.cpu / max(1, own.gpus))))},
    )


def _most_demanding(steps: Sequence[StepResources]) -> StepResources:
    """The resources with which each of some steps can run; where they may run is taken from the one that needs most."""
    largest = max(steps, key=lambda each: (each.gpus, each.memory_gib, each.cpu))
    fields = ("cpu", "memory_gib", "gpus", "shm_gib", "scratch_gib", "retries")
    highest = {name: max(getattr(each, name) for each in steps) for name in fields}
    return largest.model_copy(update={**highest, "timeout_hours": sum(each.timeout_hours for each in steps)})


def apply_pod_settings(task: PipelineTask, resources: Resources, cluster: ClusterConfig, image: str | None) -> None:
    """Sets on a KFP task everything that its pod needs; image: by digest, or None for the component's tag."""
    from kfp import kubernetes

    own = resources.own
    cpu, memory = cpu_quantity(own.cpu), memory_quantity(own.memory_gib)
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    if own.gpus:
        task.set_accelerator_type(cluster.gpu_resource).set_accelerator_limit(own.gpus)
    if own.retries:  # 0 would compile to a policy without a limit
        task.set_retry(own.retries, **RETRY)
    for name, value in resources.environment.items():
        task.set_env_variable(name, value)
    kubernetes.use_field_path_as_env(task, NODE_VARIABLE, "spec.nodeName")
    if image:
        task.set_container_image(image)
    kubernetes.set_timeout(task, resources.timeout_s)
    kubernetes.set_security_context(task, run_as_non_root=True)
    for keys, optional in ((REQUIRED_KEYS, False), (OPTIONAL_KEYS, True)) if cluster.store_secret else ():
        kubernetes.use_secret_as_env(task, cluster.store_secret, {key: key for key in keys}, optional=optional)
    for folder in resources.folders:
        size = memory_quantity(folder.gib)
        kubernetes.empty_dir_mount(task, folder.name, folder.path, medium=folder.medium, size_limit=size)
    for key, value in {**resources.labels, **resources.queue_label}.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in resources.tolerations:
        kubernetes.add_toleration(task, **toleration)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))


def pipeline_name(config: RunConfig, graph: TaskGraph) -> str:
    """KFP's name for the pipeline of a training, or of a prediction."""
    return f"cellsignal-{name_part(config.name if graph.trains else predicting_name(config.name))}"


def name_part(text: str) -> str:
    """Text as a part of a Kubernetes name: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def cpu_quantity(cores: float) -> str:
    """Cores as a Kubernetes quantity: 8, 500m."""
    return str(int(cores)) if cores == int(cores) else f"{math.ceil(cores * 1000)}m"


def memory_quantity(gib: float) -> str:
    """GiB as a Kubernetes quantity: 32Gi, 512Mi."""
    return f"{int(gib)}Gi" if gib == int(gib) else f"{math.ceil(gib * 1024)}Mi"
