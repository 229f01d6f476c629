"""A plain Kubernetes Job for each step, reading and writing s3:// addresses: to debug a step on a cluster without KFP.

Names, resources and security come from the configuration's section `cluster`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from components.core.config import RunConfig
from components.core.files import write_atomically
from components.core.storage.digests import digest_text
from pipelines.cluster.pod_settings import (
    OPTIONAL_KEYS,
    REQUIRED_KEYS,
    Resources,
    cpu_quantity,
    memory_quantity,
    resources_of,
)
from pipelines.dag import GPU_STEPS, OUTPUTS, TaskOutput, training_graph
from pipelines.images.code_version import CURRENT, Target

FLAGS = {"bases": "base", "uris": "uri", "averaged": "out", "predictions": "out", "results": "out"}
"""The steps' options whose names differ from those of inputs and outputs in the DAG."""
ACCOUNT = "cellsignal-job"
"""Service account of the Jobs (k8s/base); it has no permissions."""
CONFIG_MOUNT = "/etc/cellsignal"
CONFIG_FILE = "run.yaml"
BAD_INPUT = 2  # the exit code that no retry changes
ROOT_GIB = 1.0  # ephemeral storage besides the mounted folders: the log
HEAD = """\
# Written by `cellsignal jobs`. kubectl apply -f THIS_FILE; kubectl -n NAMESPACE logs -f job/NAME
# A Job cannot be changed: kubectl delete -f THIS_FILE before you apply it again, also to run it a second time. The names contain
# the configuration's digest, so that the Jobs of another configuration can be applied beside them.
"""


def step_jobs(
    config: RunConfig, references: Mapping[str, str], screen: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Manifests by file name: one file for the configuration, as a ConfigMap, and one for each step of the DAG.

    `references` are those of the images by target; empty for tags. `screen` is an address in a bucket; None simulates one first.

    The tasks are those of the first fold and cell type, and form a chain.
    """
    text = config.dump()
    digest = digest_text(text)[:8]
    metadata = {"name": f"cellsignal-config-{digest}", "namespace": config.cluster.namespace}
    files: dict[str, list[dict[str, Any]]] = {
        "config": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {CONFIG_FILE: text}}]
    }
    for step, tasks in _arguments(config, screen).items():
        name = step.replace("_", "-")
        numbers = [f"-{n + 1}" for n in range(len(tasks))] if len(tasks) > 1 else [""]
        files[name] = [
            _job(config, step, f"cellsignal-{name}{number}-{digest}", metadata["name"], arguments, references)
            for number, arguments in zip(numbers, tasks, strict=True)
        ]
    return files


def write_jobs(manifests: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Writes each file atomically; the Job of simulate that an earlier call left is removed if there is none now."""
    folder.mkdir(parents=True, exist_ok=True)
    if "simulate" not in manifests:  # `kubectl apply -f FOLDER` would run it
        (folder / "simulate.yaml").unlink(missing_ok=True)
    for name, documents in manifests.items():
        write_atomically(folder / f"{name}.yaml", as_text(documents))


def as_text(documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents as YAML, fields in their own order."""
    return f"{HEAD}{yaml.safe_dump_all(documents, sort_keys=False, width=110)}"


def _arguments(config: RunConfig, source: str | None) -> dict[str, list[list[str]]]:
    """Arguments of every step's tasks; each reads what the steps before it wrote."""
    prefix = f"{config.store.address}/by-hand/{config.name}"
    folds = config.folds.model_copy(update={"train": config.folds.trained[:1]})
    screen = config.screen.model_copy(update={"cell_types": config.screen.cell_types[:1]})
    option = ["--config", f"{CONFIG_MOUNT}/{CONFIG_FILE}"]

    def address(output: TaskOutput) -> str:
        task = output.task
        fold = None if task.fold is None else f"fold-{task.fold}"
        parts = (prefix, fold, task.cell_type, task.step, task.backbone, output.name)
        return "/".join(part for part in parts if part)

    found: dict[str, list[list[str]]] = {} if source else {"simulate": [[*option, "--out", f"{prefix}/simulated"]]}
    for task in training_graph(config.model_copy(update={"folds": folds, "screen": screen})).tasks:
        files = {**task.inputs, **{name: task.output(name) for name in OUTPUTS[task.step]}}
        arguments = [*option]
        if task.step == "ensemble":  # in a pipeline it compares the digests of manifests
            del files["screen"]
            arguments = []
        if task.step == "normalize":
            arguments += ["--source", source or f"{prefix}/simulated/screen"]
        if task.on_gpu:
            arguments += [text for name, value in task.labels.items() for text in (_flag(name), str(value))]
        for name, value in files.items():
            for output in value if isinstance(value, tuple) else (value,):
                arguments += [_flag(FLAGS.get(name, name)), address(output)]
        found.setdefault(task.step, []).append(arguments)
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _job(
    config: RunConfig, step: str, name: str, config_map: str, arguments: list[str], references: Mapping[str, str]
) -> dict[str, Any]:
    # simulate needs what normalize needs.
    resources = resources_of(config, "normalize" if step == "simulate" else step)
    labels = {**resources.labels, "app.kubernetes.io/component": step.replace("_", "-")}
    target: Target = "gpu" if step in GPU_STEPS else "cpu"
    command = {
        "name": "step",
        "image": references.get(target, CURRENT[target]),
        "command": ["python", "-m", f"components.{step}"],
        "args": arguments,
    }
    exit_codes = {"containerName": "step", "operator": "In", "values": [BAD_INPUT]}
    rules = [
        {"action": "FailJob", "onExitCodes": exit_codes},
        # A preempted pod, or one whose node is removed, does not count as a failed attempt.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": config.cluster.namespace,
            "labels": {**labels, **resources.queue_label},
        },
        "spec": {
            "backoffLimit": resources.own.retries,
            "podFailurePolicy": {"rules": rules},
            "template": {"metadata": {"labels": labels}, "spec": _pod(config, resources, command, config_map)},
        },
    }


def _pod(config: RunConfig, resources: Resources, command: dict[str, Any], config_map: str) -> dict[str, Any]:
    """The pod around a step's image and command."""
    own, secret = resources.own, config.cluster.store_secret
    volumes: list[dict[str, Any]] = [{"name": "config", "configMap": {"name": config_map}}]
    mounts: list[dict[str, Any]] = [{"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True}]
    for folder in resources.folders:
        medium = {"medium": folder.medium} if folder.medium else {}
        volumes.append({"name": folder.name, "emptyDir": {**medium, "sizeLimit": memory_quantity(folder.gib)}})
        mounts.append({"name": folder.name, "mountPath": folder.path})
    on_disk = sum(folder.gib for folder in resources.folders if not folder.medium)
    requests = {
        "cpu": cpu_quantity(own.cpu),
        "memory": memory_quantity(own.memory_gib),
        "ephemeral-storage": memory_quantity(math.ceil(on_disk + ROOT_GIB)),
        **({config.cluster.gpu_resource: str(own.gpus)} if own.gpus else {}),
    }
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in resources.environment.items()]
    for key in (*REQUIRED_KEYS, *OPTIONAL_KEYS) if secret else ():
        optional = {"optional": True} if key in OPTIONAL_KEYS else {}
        environment.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, **optional}}})
    scheduling = {
        "nodeSelector": resources.node_selector,
        "tolerations": resources.tolerations,
        "imagePullSecrets": [{"name": name} for name in config.cluster.image_pull_secrets],
    }
    container = {
        **command,
        "env": environment,
        "resources": {"requests": requests, "limits": dict(requests)},
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": resources.timeout_s,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **{key: value for key, value in scheduling.items() if value},
        "containers": [container],
        "volumes": volumes,
    }
