"""The configuration's part for a Kubernetes cluster: whose names the manifests in k8s/ and the compiled pipeline use.

No training step reads it, so that a change here makes nothing run again. Imports pydantic only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.core.frozen import Count, Frozen

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A name that Kubernetes takes (RFC 1123 label)."""


class ClusterConfig(Frozen):
    """Where and how a run's pods start; secrets are named, never held."""

    namespace: Name = Field("cellsignal", description="namespace of the run's pods")
    experiment: str = Field(
        "cellsignal", min_length=1, description="experiment of Kubeflow Pipelines that runs are listed under"
    )
    service_account: Name = Field("cellsignal-run", description="service account of the run's pods")
    store_secret: Name = Field(
        "cellsignal-store",
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where it is not AWS's own S3, AWS_ENDPOINT_URL "
        "and AWS_REGION",
    )
    queue: Name | None = Field(
        "cellsignal", description="Kueue LocalQueue that GPU pods wait in; null leaves the label out"
    )
    parallel_folds: Count = Field(5, description="folds trained side by side")
