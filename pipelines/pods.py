"""A step's resources put on a KFP task, for the pod that Kubeflow will make of it. Imports kfp, never torch.

KFP itself drops all capabilities, forbids privilege escalation and sets seccomp's RuntimeDefault for every task's container,
and mounts writable folders for what it copies. It has no field for a read-only root, an ephemeral-storage request or a
task's own service account: LimitRange and the run's account in k8s/base stand for the last two.
"""

from __future__ import annotations

from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from components.core.config.cluster import ClusterConfig
from pipelines.resources import (
    OPTIONAL_KEYS,
    REQUIRED_KEYS,
    Resources,
    cpu_quantity,
    memory_quantity,
    toleration_fields,
    volume_name,
)

RETRY: dict[str, Any] = {
    "backoff_duration": "120s",
    "backoff_factor": 1.0,
    "backoff_max_duration": f"{365 * 24 * 3600}s",
}
"""Two minutes before each further try. The last one is no limit of these waits: Argo counts it from the start of the first try, its
waiting for a GPU and its work included, and tries nothing after it (KFP's default is an hour). A try's own limit is its timeout."""


def dress(task: PipelineTask, resources: Resources, cluster: ClusterConfig, image: str | None) -> None:
    """Puts everything on a task that its pod needs.

    Args:
        task: of a step.
        resources: of that step.
        cluster: names of the Secret and the like.
        image: with its digest; None leaves the component's tag.
    """
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
