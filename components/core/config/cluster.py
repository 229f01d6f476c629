"""The configuration section for a Kubernetes cluster: names that the manifests in k8s/ use too, and resources of the steps' pods.

No step reads it, so a change here recomputes nothing. Imports pydantic only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from components.core.config.file import Count, FrozenModel, NonNegative, Positive

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A Kubernetes name (RFC 1123 label)."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
"""The name of a Kubernetes Secret (RFC 1123 subdomain)."""
LabelKey = Annotated[
    str,
    Field(pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$", max_length=317),
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?$", max_length=63)]
Cores = Annotated[float, Field(ge=0.1)]


class Toleration(FrozenModel):
    """A node taint that a pod tolerates."""

    key: LabelKey = Field(..., description="key of the taint")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="Exists matches any value, Equal the given one")
    value: LabelValue | None = Field(None, description="value of the taint, with operator Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        "NoSchedule", description="effect of the taint; null for all effects"
    )

    @model_validator(mode="after")
    def _value_if_equal(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a toleration has a value if its operator is Equal, and none if it is Exists")
        return self


class StepResources(FrozenModel):
    """Resources of a step's pod. Requests and limits are equal, so pods get the QoS class Guaranteed."""

    cpu: Cores = Field(2.0, description="cores; the step starts at most this many threads")
    memory_gib: Annotated[float, Field(ge=0.25)] = Field(
        4.0, description="memory, GiB, including shm_gib, which counts as memory once it is written to"
    )
    gpus: Annotated[int, Field(ge=0)] = Field(
        0,
        description="number of GPUs (cluster.gpu_resource). compute.processes 0 starts one process per GPU, and each process "
        "keeps loader.cache_gib of decoded sites, so memory_gib must grow with it",
    )
    shm_gib: NonNegative = Field(
        0.0,
        description="size of /dev/shm, GiB. Loading needs none (it uses threads); NCCL with several GPUs does. 0 keeps the "
        "container runtime's 64 MiB",
    )
    scratch_gib: Positive = Field(
        5.0, description="largest size of /tmp on the node's disk, GiB; a pod that exceeds it is evicted"
    )
    timeout_hours: Positive = Field(6.0, description="hours after which a pod is stopped")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        3,
        description="how often a task may be retried within its run, two minutes after it ended. The installation's retryPolicy "
        "decides after which failures: with Kubeflow's own manifests after a deleted pod, not after a failed process or an OOM "
        "kill. Besides, `submit --wait` submits a failed run again. Training resumes from its checkpoint",
    )
    node_selector: dict[LabelKey, LabelValue] | None = Field(
        None,
        description="required node labels, instead of cluster.gpu_nodes or cluster.cpu_nodes; {} for any node",
    )
    tolerations: tuple[Toleration, ...] = Field(
        (), description="taints that this step's pod tolerates, in addition to those of the cluster section"
    )
    spot: bool | None = Field(
        None, description="whether the pod may run on spot nodes; null: as cluster.spot for steps with GPUs, else no"
    )


_TRAINING = StepResources(
    cpu=8.0, memory_gib=32.0, gpus=1, shm_gib=1.0, scratch_gib=20.0, timeout_hours=48.0, retries=8
)


class StepsConfig(FrozenModel):
    """Resources of the steps' pods. A field that is left out keeps the step's own default.

    The defaults are for RxRx1 at 512 pixels: a site is 1.5 MiB decoded, a plate 616 sites.
    """

    # Packing decodes PNGs on every core (51 sites per second and core, 130 MB of memory whatever the screen's size).
    normalize: StepResources = StepResources(cpu=16.0, memory_gib=16.0, timeout_hours=12.0)
    # A process takes about 4 GiB (torch, CUDA, tables), loader.cache_gib (8 in rxrx1.yaml), five batches (1 GiB) of sites;
    # scratch holds the weights (0.2 GiB) and a checkpoint: weights, gradient moments and the best weights.
    # An epoch takes minutes to an hour; `cellsignal plan` estimates 9 h on an A100 to pretrain xception_large.
    pretrain: StepResources = _TRAINING
    finetune: StepResources = _TRAINING.model_copy(update={"timeout_hours": 24.0})
    pseudo_label: StepResources = _TRAINING
    infer: StepResources = _TRAINING.model_copy(update={"timeout_hours": 12.0})
    # Logits of a fold and cell type are at most 20,000 wells x 1,139 classes of float32, 90 MB; no network is run.
    ensemble: StepResources = StepResources(cpu=2.0, memory_gib=8.0)
    assign: StepResources = StepResources(cpu=2.0, memory_gib=8.0)
    report: StepResources = StepResources(cpu=2.0, memory_gib=8.0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: Any) -> Any:
        """A partly given step keeps its own defaults, not those of StepResources."""
        if not isinstance(data, Mapping):
            return data
        own = {name: field.default.model_dump() for name, field in cls.model_fields.items()}
        return {
            step: {**own[step], **given} if step in own and isinstance(given, Mapping) else given
            for step, given in data.items()
        }


class ClusterConfig(FrozenModel):
    """Where and how a run's pods start. Secrets are referred to by name; the configuration holds none."""

    namespace: Name = Field("cellsignal", description="namespace of the run's pods")
    experiment: str = Field(
        "cellsignal", min_length=1, description="Kubeflow Pipelines experiment that runs are listed under"
    )
    service_account: Name = Field("cellsignal-run", description="service account of the run's pods")
    store_secret: ObjectName | None = Field(
        "cellsignal-store",
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION unless it is us-east-1, and AWS_ENDPOINT_URL "
        "unless the store is Amazon S3; null if the pods' service account has a role of its own (IRSA, EKS Pod Identity), which "
        "works with Amazon S3 only",
    )
    image_pull_secrets: tuple[ObjectName, ...] = Field(
        (), description="Secrets for a registry that requires credentials; none if the nodes may pull"
    )
    queue: Name | None = Field("cellsignal", description="Kueue LocalQueue of GPU pods; null sets no queue label")
    parallel_folds: Count = Field(5, description="folds trained in parallel")
    group: Literal["task", "fold"] = Field(
        "task",
        description="what a pod runs: one task, or with `fold` those of a fold and cell type one after another (pretrain of all "
        "backbones; finetune and pseudo_label; ensemble and assign). This halves the number of pods, each of which takes some 15 "
        "seconds to start, but backbones do not train side by side. A pod requests what the most demanding of its steps needs",
    )
    caching: bool = Field(
        True,
        description="whether Kubeflow skips, without a pod, a task whose inputs, images and data fingerprint it has seen; false "
        "starts a pod, which copies finished outputs from the store",
    )
    gpu_resource: LabelKey = Field("nvidia.com/gpu", description="name of the GPU resource that pods request")
    gpu_nodes: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        description="node labels for steps with GPUs, for example nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB. Training resumes "
        "bit for bit only on the same kind of GPU, so name one kind",
    )
    cpu_nodes: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="node labels for steps without GPUs; {} for any node"
    )
    gpu_tolerations: tuple[Toleration, ...] = Field(
        (Toleration(key="nvidia.com/gpu"),), description="taints of GPU nodes, tolerated by steps with GPUs"
    )
    tolerations: tuple[Toleration, ...] = Field((), description="taints that every step's pod tolerates")
    spot: bool = Field(
        False, description="whether steps with GPUs may run on spot nodes, which the cloud may take away at any moment"
    )
    spot_toleration: Toleration = Field(
        Toleration(key="cloud.google.com/gke-spot", operator="Equal", value="true"),
        description="taint of spot nodes; the default is GKE's, other clouds use others",
    )
    steps: StepsConfig = Field(StepsConfig(), description="resources of each step's pod")
