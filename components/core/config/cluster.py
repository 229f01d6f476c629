"""The configuration's part for a Kubernetes cluster: names that the manifests in k8s/ use too, and what each step's pod asks for.

No step reads it, so that a change here makes nothing run again. Imports pydantic only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from components.core.config.base import Count, FrozenModel, NonNegative, Positive

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A name that Kubernetes takes (RFC 1123 label)."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
"""A name that Kubernetes takes for a Secret (RFC 1123 subdomain)."""
LabelKey = Annotated[
    str,
    Field(pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$", max_length=317),
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?$", max_length=63)]
Cores = Annotated[float, Field(ge=0.1)]


class Toleration(FrozenModel):
    """A taint of nodes that a pod may run on all the same."""

    key: LabelKey = Field(..., description="key of the taint")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="Exists takes any value")
    value: LabelValue | None = Field(None, description="of the taint; with Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        "NoSchedule", description="effect of the taint; null for all of them"
    )

    @model_validator(mode="after")
    def _value_where_equal(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a toleration has a value where its operator is Equal, and none where it is Exists")
        return self


class StepResources(FrozenModel):
    """What the pod of a step asks for; requests and limits are the same, so that pods are of the class Guaranteed."""

    cpu: Cores = Field(2.0, description="cores; the step starts no more threads than these")
    memory_gib: Annotated[float, Field(ge=0.25)] = Field(
        4.0, description="GiB, shm_gib included, which lies in memory and counts when it is written to"
    )
    gpus: Annotated[int, Field(ge=0)] = Field(
        0,
        description="GPUs of cluster.gpu_resource. compute.processes 0 takes all of them, one process a GPU, and each "
        "process keeps loader.cache_gib of decoded sites, so that memory_gib grows with it",
    )
    shm_gib: NonNegative = Field(
        0.0,
        description="/dev/shm, GiB. Loading needs none (threads, no worker processes); NCCL of several GPUs does. 0 leaves the "
        "container runtime's 64 MiB",
    )
    scratch_gib: Positive = Field(
        5.0, description="largest size of /tmp on the node's disk, GiB; the pod is evicted beyond it"
    )
    timeout_hours: Positive = Field(6.0, description="a pod that runs longer is ended, and tried again")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        3, description="further tries of a failed pod; training goes on from its last checkpoint"
    )
    node_selector: dict[LabelKey, LabelValue] | None = Field(
        None,
        description="labels that the nodes must have, instead of cluster.gpu_nodes or cluster.cpu_nodes; {} for any",
    )
    tolerations: tuple[Toleration, ...] = Field(
        (), description="taints that this step's pod tolerates, besides those of the cluster section"
    )
    spot: bool | None = Field(
        None, description="whether the pod may run on spot nodes; null as cluster.spot, which holds for steps with GPUs"
    )


# For RxRx1 at 512 px: a site is 1.5 MiB decoded, a plate 616 sites.
USUAL = {
    # Packing decodes PNGs on every core (51 sites a second and core, 130 MB in memory whatever the screen's size).
    "normalize": StepResources(cpu=16.0, memory_gib=16.0, timeout_hours=12.0),
    # A process takes about 4 GiB (torch, CUDA, tables), loader.cache_gib (8 in rxrx1.yaml), five batches (1 GiB) of sites;
    # scratch holds the weights (0.2 GiB) and a checkpoint, which has weights, gradients' moments and the best weights.
    # An epoch is minutes to an hour, and pretraining of xception_large about 9 h on an A100 by the plan.
    "pretrain": StepResources(
        cpu=8.0, memory_gib=32.0, gpus=1, shm_gib=1.0, scratch_gib=20.0, timeout_hours=48.0, retries=8
    ),
    "finetune": StepResources(
        cpu=8.0, memory_gib=32.0, gpus=1, shm_gib=1.0, scratch_gib=20.0, timeout_hours=24.0, retries=8
    ),
    "pseudo_label": StepResources(
        cpu=8.0, memory_gib=32.0, gpus=1, shm_gib=1.0, scratch_gib=20.0, timeout_hours=48.0, retries=8
    ),
    "infer": StepResources(
        cpu=8.0, memory_gib=32.0, gpus=1, shm_gib=1.0, scratch_gib=20.0, timeout_hours=12.0, retries=8
    ),
    # Logits of a fold and cell type are at most 20,000 wells x 1,139 classes of float32, 90 MB; no network is run.
    "ensemble": StepResources(cpu=2.0, memory_gib=8.0),
    "assign": StepResources(cpu=2.0, memory_gib=8.0),
    "report": StepResources(cpu=2.0, memory_gib=8.0),
}
"""What each step asks for unless configured otherwise."""


class StepsConfig(FrozenModel):
    """The pods of the steps. A field that is left out is the step's usual one."""

    normalize: StepResources = USUAL["normalize"]
    pretrain: StepResources = USUAL["pretrain"]
    finetune: StepResources = USUAL["finetune"]
    pseudo_label: StepResources = USUAL["pseudo_label"]
    infer: StepResources = USUAL["infer"]
    ensemble: StepResources = USUAL["ensemble"]
    assign: StepResources = USUAL["assign"]
    report: StepResources = USUAL["report"]

    @model_validator(mode="before")
    @classmethod
    def _usual_where_left_out(cls, data: Any) -> Any:
        """A step that is given in part keeps its own usual figures, not those of StepResources."""
        if not isinstance(data, Mapping):
            return data
        return {
            step: {**USUAL[step].model_dump(), **given} if step in USUAL and isinstance(given, Mapping) else given
            for step, given in data.items()
        }


class ClusterConfig(FrozenModel):
    """Where and how a run's pods start; secrets are named, never held."""

    namespace: Name = Field("cellsignal", description="namespace of the run's pods")
    experiment: str = Field(
        "cellsignal", min_length=1, description="experiment of Kubeflow Pipelines that runs are listed under"
    )
    service_account: Name = Field("cellsignal-run", description="service account of the run's pods")
    store_secret: ObjectName | None = Field(
        "cellsignal-store",
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION unless it is us-east-1, and "
        "AWS_ENDPOINT_URL unless it is Amazon's own S3; null where the pods' service account has a role of its own (IRSA, EKS Pod "
        "Identity), which is for Amazon's own",
    )
    image_pull_secrets: tuple[ObjectName, ...] = Field(
        (), description="Secrets for a registry that asks who pulls; none where nodes may pull"
    )
    queue: Name | None = Field(
        "cellsignal", description="Kueue LocalQueue that GPU pods wait in; null leaves the label out"
    )
    parallel_folds: Count = Field(5, description="folds trained side by side")
    caching: bool = Field(
        True,
        description="whether Kubeflow skips a task whose inputs, images and data fingerprint it has seen, without a pod; off, a "
        "pod starts and fetches what is finished from the store",
    )
    gpu_resource: LabelKey = Field("nvidia.com/gpu", description="resource name that GPUs are asked for by")
    gpu_nodes: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        description="labels of nodes for steps with GPUs, for example nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB. A fold's "
        "checkpoints go on bit for bit on the same kind alone, so name one kind",
    )
    cpu_nodes: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="labels of nodes for steps without; {} for any"
    )
    gpu_tolerations: tuple[Toleration, ...] = Field(
        (Toleration(key="nvidia.com/gpu"),), description="taints of GPU nodes, tolerated by steps with GPUs"
    )
    tolerations: tuple[Toleration, ...] = Field((), description="taints that every step's pod tolerates")
    spot: bool = Field(
        False, description="whether steps with GPUs may run on spot nodes, from which they are taken at any moment"
    )
    spot_toleration: Toleration = Field(
        Toleration(key="cloud.google.com/gke-spot", operator="Equal", value="true"),
        description="taint of spot nodes: GKE's; other clouds have others, your own node pools what you set",
    )
    steps: StepsConfig = Field(StepsConfig(), description="what each step's pod asks for")

    @property
    def credentials(self) -> str:
        """What must be in the pods' namespace for them to reach the store, for messages."""
        return f"secret {self.store_secret}" if self.store_secret else "the role of that account"
