"""What the pod of a step requests, and how it is set on a KFP task. kfp is imported only to change a task.

KFP itself drops all capabilities, forbids privilege escalation and sets seccomp's RuntimeDefault for every task's container,
and mounts writable folders for what it copies. It has no field for a read-only root, an ephemeral-storage request or a
task's own service account: k8s/base covers the last two with a LimitRange and the run's account.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.core.config import RunConfig
from components.core.config.cluster import ClusterConfig, Toleration
from pipelines.dag import GPU_STEPS

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

REQUIRED_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys of the store's Secret, and the environment variables of the steps."""
OPTIONAL_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN")
"""Keys that may be missing: Amazon S3 needs no endpoint, permanent keys need no token."""
SCRATCH = "/tmp"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RETRY: dict[str, Any] = {
    "backoff_duration": "120s",
    "backoff_factor": 1.0,
    "backoff_max_duration": f"{365 * 24 * 3600}s",
}
"""Two minutes before each retry. The installation chooses which failures are retried (Argo's retryPolicy): with KFP's own
manifests deleted and evicted pods, but not processes that fail. `backoff_max_duration` limits the time since the first attempt
began, including queueing and work (KFP's default is an hour)."""


@dataclass(frozen=True)
class Resources:
    """What one step requests.

    Attributes:
        step: the step's name.
        cpu: cores.
        memory_gib: memory in GiB, /dev/shm included.
        gpus: number of GPUs.
        gpu_resource: the resource name of a GPU, for example nvidia.com/gpu.
        shm_gib: size of /dev/shm in GiB; 0 for the container runtime's default.
        volumes: size limits in GiB of the emptyDir volumes, by mount path.
        timeout_s: seconds after which a pod is killed.
        retries: how many times KFP may retry the task.
        node_selector: labels of its nodes.
        tolerations: tolerated taints.
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
        """Labels of every pod of the step."""
        return {"app.kubernetes.io/name": "cellsignal", "app.kubernetes.io/component": self.step.replace("_", "-")}

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the object that Kueue admits: the pod, or the Job around it."""
        return {**self.own_labels, **({QUEUE_LABEL: self.queue} if self.queue else {})}


def resources_of(config: RunConfig, step: str) -> Resources:
    """The resources of a step's pod on a cluster, and of its container under Docker."""
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
        # The restricted pod security standard forbids a hostPath: the cache belongs to the pod and serves its later epochs.
        volumes[config.loader.node_cache] = config.loader.node_cache_gib * 1.05
    threads = str(max(1, math.floor(own.cpu / max(1, own.gpus))))
    return Resources(
        step=step,
        cpu=own.cpu,
        memory_gib=own.memory_gib,
        gpus=own.gpus,
        gpu_resource=cluster.gpu_resource,
        shm_gib=own.shm_gib,
        volumes=volumes,
        timeout_s=round(own.timeout_hours * 3600),
        retries=own.retries,
        node_selector=dict(nodes),
        tolerations=tuple(dict.fromkeys(tolerations)),
        queue=cluster.queue if on_gpu else None,
        environment={"OMP_NUM_THREADS": threads},
    )


def apply_pod_settings(task: PipelineTask, resources: Resources, cluster: ClusterConfig, image: str | None) -> None:
    """Sets on a task everything that its pod needs.

    Args:
        task: the KFP task.
        resources: what its step requests.
        cluster: names of the Secret and of the image pull secrets.
        image: image by digest; None keeps the component's tag.
    """
    from kfp import kubernetes

    cpu, memory = cpu_quantity(resources.cpu), memory_quantity(resources.memory_gib)
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    if resources.gpus:
        task.set_accelerator_type(resources.gpu_resource).set_accelerator_limit(resources.gpus)
    task.set_retry(resources.retries, **RETRY)
    for name, value in resources.environment.items():
        task.set_env_variable(name, value)
    if image:
        task.set_container_image(image)
    kubernetes.set_timeout(task, resources.timeout_s)
    kubernetes.set_security_context(task, run_as_non_root=True)
    for keys, optional in ((REQUIRED_KEYS, False), (OPTIONAL_KEYS, True)) if cluster.store_secret else ():
        kubernetes.use_secret_as_env(task, cluster.store_secret, {key: key for key in keys}, optional=optional)
    if resources.shm_gib:
        size = memory_quantity(resources.shm_gib)
        kubernetes.empty_dir_mount(task, volume_name("/dev/shm"), "/dev/shm", medium="Memory", size_limit=size)
    for path, gib in resources.volumes.items():
        kubernetes.empty_dir_mount(task, volume_name(path), path, size_limit=memory_quantity(gib))
    for key, value in resources.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in resources.tolerations:
        kubernetes.add_toleration(task, **toleration_fields(toleration))
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))


def cpu_quantity(cores: float) -> str:
    """Cores as a Kubernetes quantity: 8, 500m."""
    return str(int(cores)) if cores == int(cores) else f"{math.ceil(cores * 1000)}m"


def memory_quantity(gib: float) -> str:
    """GiB as a Kubernetes quantity: 32Gi, 512Mi."""
    return f"{int(gib)}Gi" if gib == int(gib) else f"{math.ceil(gib * 1024)}Mi"


def volume_name(path: str) -> str:
    """The name of the volume mounted at a path."""
    return {SCRATCH: "scratch", "/dev/shm": "shm"}.get(path, "node-cache")


def toleration_fields(toleration: Toleration) -> dict[str, Any]:
    """A toleration in Kubernetes' form."""
    return toleration.model_dump(exclude_none=True)
