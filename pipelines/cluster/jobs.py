"""A plain Kubernetes Job for each step, reading and writing s3:// addresses: to debug a step on a cluster without KFP.

Names, resources and security are those of the configuration's section `cluster`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from components.core.config import RunConfig
from components.core.config.file import shipped_configs
from components.core.files import write_atomically
from components.core.storage.digests import digest_text
from components.core.storage.opening import join_address
from pipelines.cluster.checks import on_cluster
from pipelines.cluster.pod_settings import (
    OPTIONAL_KEYS,
    REQUIRED_KEYS,
    Resources,
    cpu_quantity,
    memory_quantity,
    resources_of,
    toleration_fields,
    volume_name,
)
from pipelines.dag import GPU_STEPS, OUTPUTS, NodeOutput, training_graph
from pipelines.images.code_version import CURRENT, Target
from pipelines.images.record import ImageRecord

FLAGS = {"bases": "base", "uris": "uri", "averaged": "out", "predictions": "out", "results": "out"}
"""Options of the steps that are not called like the input or output in the DAG."""
ACCOUNT = "cellsignal-job"
"""Service account of these Jobs (k8s/base); it has no permissions."""
CONFIG_MOUNT = "/etc/cellsignal"
CONFIG_FILE = "run.yaml"
BAD_INPUT = 2  # the exit code that no retry changes
NAME_LENGTH = 63  # a Job's name is a label of its pods
ROOT_GIB = 1.0  # ephemeral storage besides the mounted folders: the log


def step_jobs(
    config: RunConfig, source: str, changes: Sequence[str], record: ImageRecord | None
) -> dict[str, list[dict[str, Any]]]:
    """Manifests by file name: a file for each step of the DAG, and one for the configuration unless it is a shipped one.

    The tasks are those of the first fold and cell type; with a simulated screen at the beginning, they form a chain.

    Args:
        config: the run's configuration.
        source: the name or file that it was read from.
        changes: the values of --set.
        record: images to pin; None for tags.
    """
    config = on_cluster(config)
    shipped = (shipped_configs() / f"{source}.yaml").is_file()
    option = ["--config", source if shipped else f"{CONFIG_MOUNT}/{CONFIG_FILE}"]
    if not any(change.startswith("store.bucket=") for change in changes):
        changes = (*changes, f"store.bucket={config.store.bucket}")
    for change in changes if shipped else ():
        option += ["--set", change]
    files: dict[str, list[dict[str, Any]]] = {}
    if not shipped:
        files["config"] = [_config_map(config)]
    for step, tasks in _arguments(config).items():
        files[step] = [
            _job(config, step, label, [*([] if step == "ensemble" else option), *arguments], record, not shipped)
            for label, arguments in tasks.items()
        ]
    return files


def write_jobs(manifests: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Writes each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in manifests.items():
        write_atomically(folder / f"{name.replace('_', '-')}.yaml", as_text(documents))


def as_text(documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents as YAML, fields in their own order."""
    return HEAD + yaml.safe_dump_all(documents, sort_keys=False, width=110)


HEAD = """\
# Written by `cellsignal jobs`. kubectl apply -f THIS_FILE; kubectl -n NAMESPACE logs -f job/NAME
# A Job cannot be changed: kubectl delete -f THIS_FILE before you apply it again, also to run it a second time.
"""


def _arguments(config: RunConfig) -> dict[str, dict[str, list[str]]]:
    """Arguments of every step's tasks, by a label that distinguishes them; each reads what the steps before it wrote."""
    prefix = f"{join_address(config.store.bucket, config.store.prefix)}/by-hand/{config.name}"
    fold, cell_type = config.folds.trained[0], config.screen.cell_types[0]

    def address(output: NodeOutput) -> str:
        node = output.node
        parts = (f"fold-{fold}" if node.loop else "", node.cell_type or "", node.step, node.backbone or "", output.name)
        return "/".join(part for part in (prefix, *parts) if part)

    found: dict[str, dict[str, list[str]]] = {"simulate": {"": ["--out", f"{prefix}/simulated"]}}
    for node in training_graph(config).nodes:
        if node.cell_type not in (None, cell_type):
            continue
        arguments = ["--source", f"{prefix}/simulated/screen"] if node.step == "normalize" else []
        if node.loop:
            arguments += ["--fold", str(fold), *(["--cell-type", node.cell_type] if node.cell_type else [])]
            arguments += ["--backbone", node.backbone] if node.backbone else []
        read = {name: value if isinstance(value, tuple) else (value,) for name, value in node.inputs.items()}
        if node.step == "ensemble":
            del read["screen"]  # compares the digests of manifests in a pipeline
        for name, outputs in (*read.items(), *((name, (node.output(name),)) for name in OUTPUTS[node.step])):
            for output in outputs:
                if output.node.cell_type in (None, cell_type):
                    arguments += [f"--{FLAGS.get(name, name.replace('_', '-'))}", address(output)]
        found.setdefault(node.step, {})[node.backbone or ""] = arguments
    return found


def _job(
    config: RunConfig, step: str, label: str, arguments: list[str], record: ImageRecord | None, mounts_config: bool
) -> dict[str, Any]:
    # simulate needs what normalize needs.
    resources = replace(resources_of(config, "normalize" if step == "simulate" else step), step=step)
    target: Target = "gpu" if step in GPU_STEPS else "cpu"
    image = record.images[target].reference if record else CURRENT[target]
    name = _job_name(step, label)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": config.cluster.namespace, "labels": resources.labels},
        "spec": {
            "backoffLimit": resources.retries,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "step", "operator": "In", "values": [BAD_INPUT]},
                    },
                    # A preempted pod, or one whose node is removed, does not count as a failed attempt.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {
                "metadata": {"labels": resources.own_labels},
                "spec": _pod(config, image, arguments, resources, mounts_config),
            },
        },
    }


def _job_name(step: str, label: str) -> str:
    """A valid name; a label that does not fit is cut and gets a digest."""
    whole = "-".join(part for part in ("cellsignal", step, label) if part).replace("_", "-").lower()
    if len(whole) <= NAME_LENGTH and not whole.endswith("-"):
        return whole
    return f"{whole[: NAME_LENGTH - 9].rstrip('-')}-{digest_text(label)[:8]}"


def _pod(
    config: RunConfig, image: str, arguments: list[str], resources: Resources, mounts_config: bool
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": volume_name(path), "emptyDir": {"sizeLimit": memory_quantity(gib)}}
        for path, gib in resources.volumes.items()
    ]
    mounts: list[dict[str, Any]] = [{"name": volume_name(path), "mountPath": path} for path in resources.volumes]
    if resources.shm_gib:
        shm = {"medium": "Memory", "sizeLimit": memory_quantity(resources.shm_gib)}
        volumes.append({"name": "shm", "emptyDir": shm})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if mounts_config and resources.step != "ensemble":
        volumes.append({"name": "config", "configMap": {"name": _config_name(config)}})
        mounts.append({"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True})
    storage = memory_quantity(math.ceil(sum(resources.volumes.values()) + ROOT_GIB))
    requests = {
        "cpu": cpu_quantity(resources.cpu),
        "memory": memory_quantity(resources.memory_gib),
        "ephemeral-storage": storage,
        **({resources.gpu_resource: str(resources.gpus)} if resources.gpus else {}),
    }
    environment = [
        *({"name": name, "value": value} for name, value in resources.environment.items()),
        *(_from_secret(config.cluster.store_secret) if config.cluster.store_secret else ()),
    ]
    optional = {
        "nodeSelector": dict(resources.node_selector),
        "tolerations": [toleration_fields(toleration) for toleration in resources.tolerations],
        "imagePullSecrets": [{"name": name} for name in config.cluster.image_pull_secrets],
    }
    return {
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": resources.timeout_s,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **{name: value for name, value in optional.items() if value},
        "containers": [
            {
                "name": "step",
                "image": image,
                "command": ["python", "-m", f"components.{resources.step}"],
                "args": arguments,
                "env": environment,
                "resources": {"requests": requests, "limits": dict(requests)},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _from_secret(secret: str) -> Iterator[dict[str, Any]]:
    for keys, optional in ((REQUIRED_KEYS, {}), (OPTIONAL_KEYS, {"optional": True})):
        for key in keys:
            yield {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, **optional}}}


def _config_name(config: RunConfig) -> str:
    return "cellsignal-" + re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-")


def _config_map(config: RunConfig) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _config_name(config), "namespace": config.cluster.namespace},
        "data": {CONFIG_FILE: config.dump()},
    }
