"""Whether Kubeflow Pipelines answers, knows us and lets us into the namespace. Imports kfp."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from components.core.config import ClusterConfig
from pipelines.cluster.endpoint import Endpoint, Login
from pipelines.doctor.finding import Finding


def check_endpoint(url: str, config: ClusterConfig) -> Iterator[Finding]:
    """Reaches an endpoint as `cellsignal submit` does.

    Args:
        url: of the endpoint.
        config: names the namespace.
    """
    login = Login.from_environment()
    endpoint = Endpoint(url, login, config.namespace)
    yield Finding("Kubeflow Pipelines", "ok", f"{endpoint.version} at {endpoint.url}, with {login.how}")
    ours = version("kfp")
    theirs = endpoint.version.lstrip("v")
    if theirs[:1].isdigit() and theirs.split(".")[:1] != ours.split(".")[:1]:
        yield Finding(
            "its version",
            "failed",
            f"the server is {endpoint.version}, pipelines are compiled by kfp {ours}; update it",
        )
    endpoint.client.list_experiments(page_size=1)
    if endpoint.multi_user:
        yield Finding("namespace", "ok", f"{config.namespace}: its experiments can be listed")
    else:
        yield Finding(
            "namespace",
            "warning",
            f"this deployment knows none: pods start in its own, where service account {config.service_account} and "
            f"{config.credentials} must be",
        )
