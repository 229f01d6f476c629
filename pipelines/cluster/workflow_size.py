"""An estimate of a compiled pipeline's size in Argo, which keeps a workflow in one object of limited size. Imports nothing of KFP.

The object holds the specification, and the nodes, compressed. Kubeflow makes six nodes of a task and one more of each retry. Most
of a node is the driver's patch of the pod: its settings, the component, and all inputs and outputs. This builds such nodes, as
Kubeflow's sources describe them, and compresses them as Argo does. Two constants are fitted to a run of 60 tasks, measured on
Kubeflow Pipelines 2.17.0 with Argo 4.0.5.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from components.core.errors import InputError
from components.core.storage.digests import digest_text

LIMIT = 2**20
"""Bytes of a workflow that Argo accepts; the run of a larger one stops for good."""
RETRIES = 3
"""How often every third task is expected to be retried, if it may be."""
TEMPLATES = 20_000
"""Bytes of the specification that do not depend on the pipeline: templates of drivers, launchers and loops."""
UNSEEN = 1.2
"""Size of real nodes by that of these, whose unpredictable parts (addresses of logs, node names, messages) are few."""
NODES = ("driver", "driver(0)", "task", "task(0)", "executor", "executor(0)")
"""The nodes of a task: for driver, group and launcher one that counts attempts, and one for the attempt."""
_RUN = "12345678-1234-1234-1234-123456789012"
_SESSION = json.dumps({
    "Provider": "s3",
    "Params": {
        "accessKeyKey": "AWS_ACCESS_KEY_ID", "disableSSL": "true", "endpoint": "object-store.namespace.svc.cluster.local:9000",
        "forcePathStyle": "true", "fromEnv": "false", "maxRetries": "5", "region": "us-east-1",
        "secretKeyKey": "AWS_SECRET_ACCESS_KEY", "secretName": "object-store-credentials",
    },
})  # fmt: skip
"""What Kubeflow adds to each input artifact: how its bucket is reached."""
_LAUNCHER = [
    "--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)", "--mlmd_server_address", "$(METADATA_GRPC_SERVICE_HOST)",
    "--mlmd_server_port", "$(METADATA_GRPC_SERVICE_PORT)", "--publish_logs", "true", "--",
]  # fmt: skip


@dataclass(frozen=True)
class WorkflowSize:
    """An estimate, bytes."""

    tasks: int
    specification: int
    nodes: int  # compressed, in base64

    @property
    def total(self) -> int:
        """What Argo compares with its limit."""
        return self.specification + self.nodes

    def check(self, grouped: bool) -> None:
        """Raises InputError if Argo would refuse the workflow; `grouped` is whether cluster.group is fold already."""
        if self.total > LIMIT:
            group = "" if grouped else "set cluster.group fold, which makes fewer tasks, or "
            raise InputError(
                f"cluster: a workflow of {self.tasks} tasks would need about {self.total / 1000:,.0f} kB in Argo, which accepts "
                f"{LIMIT // 1000:,}; {group}train fewer folds or cell types at a time"
            )


def workflow_size(text: str) -> WorkflowSize:
    """The size of a compiled pipeline's run, with the retries of a bad day."""
    spec, platform = yaml.load_all(text, yaml.CSafeLoader)
    return _Workflow(spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]).size()


class _Workflow:
    """The specification and the nodes of a run; `nodes` by their name in Argo."""

    def __init__(self, spec: Mapping[str, Any], kubernetes: Mapping[str, Any]) -> None:
        self.components, self.root, self.kubernetes = spec["components"], spec["root"], kubernetes
        self.executors = {name: each["container"] for name, each in spec["deploymentSpec"]["executors"].items()}
        parameters = self.root["inputDefinitions"]["parameters"]
        self.defaults = {name: each.get("defaultValue", "x" * 40) for name, each in parameters.items()}
        self.tasks, self.nodes = 0, dict[str, dict[str, Any]]()

    def size(self) -> WorkflowSize:
        self._add_dag("root", self.root, self.defaults)
        text = json.dumps(self.nodes, sort_keys=True, separators=(",", ":"))
        nodes = UNSEEN * len(base64.b64encode(gzip.compress(text.encode(), 6)))
        return WorkflowSize(self.tasks, self._specification(), round(nodes))

    def _specification(self) -> int:
        """Components, commands and pod settings once each; each task with its driver's and its launcher's arguments."""
        dags = [each for each in (self.root, *self.components.values()) if "dag" in each]
        tasks = [task for dag in dags for task in dag["dag"]["tasks"].values()]
        # The same command with other settings of the pod is one component to Argo.
        once = {
            _text(self.executors[each["executorLabel"]]): each for each in self.components.values() if each not in dags
        }
        kept = [*dags, *once, *once.values(), *self.kubernetes.values(), *tasks, self.defaults]
        return TEMPLATES + sum(len(json.dumps(_text(each))) for each in kept) + 1100 * len(tasks)

    def _add_dag(self, path: str, dag: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """Adds the nodes of all tasks of the pipeline or of one iteration of a loop; `known` are its parameters."""
        folds = [len(self._items(task, known)) for task in dag["dag"]["tasks"].values() if "parameterIterator" in task]
        self._add(f"{path}-driver", {"component": _text(dag), "runtime-config": _text(self.defaults)})
        for name, task in dag["dag"]["tasks"].items():
            component = self.components[task["componentRef"]["name"]]
            if "parameterIterator" not in task:
                self._add_task(f"{path}.{name}", name, task, component, known, max(folds, default=1))
                continue
            for number, item in enumerate(self._items(task, known)):
                self._add_dag(f"{path}.{name}.iteration({number})", component, {**known, "loop-item": item})

    @staticmethod
    def _items(task: Mapping[str, Any], known: Mapping[str, Any]) -> list[Any]:
        items = task["parameterIterator"]["items"]
        found = json.loads(items["raw"]) if "raw" in items else known[items["inputParameter"].split("--")[-1]]
        return list(found)

    def _add_task(self, path: str, name: str, task: Any, component: Any, known: Mapping[str, Any], folds: int) -> None:
        label = component["executorLabel"]
        container, kubernetes = self.executors[label], self.kubernetes[label]
        patch = self._patch(path, name, task, component, known, folds)
        given = {"component": _text(component), "task": _text(task), "container": _text(container)}
        given |= {"kubernetes-config": _text(kubernetes), "task-name": name}
        labels = enumerate(kubernetes.get("podMetadata", {}).get("labels", {}).items())
        passed = {f"pod-metadata-{n}": " ".join(each) for n, each in labels} | {
            "retry": _text(task.get("retryPolicy", {}))
        }
        retries = min(RETRIES, task.get("retryPolicy", {}).get("maxRetryCount", 0)) if self.tasks % 3 == 0 else 0
        for node in (*NODES, *(f"executor({n + 1})" for n in range(retries))):
            inputs = given if node.startswith("driver") else passed
            self._add(f"{path}-{node}", {**inputs, "pod-spec-patch": patch})
        self.tasks += 1

    def _add(self, name: str, parameters: Mapping[str, str]) -> None:
        identity = f"workflow-name-{int(digest_text(name)[:8], 16)}"  # nodes are sorted by it, so tasks mix
        listed = [{"name": key, "value": value} for key, value in parameters.items()]
        self.nodes[identity] = {
            "id": identity, "name": f"workflow-name.{name}", "displayName": name.rpartition(".")[2], "phase": "Succeeded",
            "templateName": "metadata-0-3-retry-system-container-executor", "templateScope": "local/workflow-name",
            "boundaryID": digest_text(f"{name} parent")[:8], "children": [digest_text(f"{name} child")[:8]],
            "startedAt": digest_text(f"{name} start")[:8], "finishedAt": digest_text(f"{name} end")[:8],
            "resourcesDuration": {"cpu": len(name), "memory": 60}, "inputs": {"parameters": listed},
        }  # fmt: skip

    def _patch(self, path: str, name: str, task: Any, component: Any, known: Mapping[str, Any], folds: int) -> str:
        """What the driver sets on the pod."""
        label = component["executorLabel"]
        container, kubernetes = self.executors[label], self.kubernetes[label]
        inputs, outputs = (component.get(f"{side}Definitions", {}) for side in ("input", "output"))
        read = task.get("inputs", {})
        values = {key: self._value(each, known) for key, each in read.get("parameters", {}).items()}
        artifacts = {}
        for key, source in read.get("artifacts", {}).items():
            many = folds if inputs["artifacts"][key].get("isArtifactList") else 1
            origin = f"{path.rpartition('.')[0]} {_text(source)}"
            artifacts[key] = [
                {**_artifact(f"{origin} {n}", key), "metadata": {"display_name": key, "store_session_info": _SESSION}}
                for n in range(many)
            ]
        written = {key: [_artifact(f"{path} {key}", key)] for key in outputs.get("artifacts", {})}
        secrets = [
            {
                "name": key["envVar"],
                "valueFrom": {"secretKeyRef": {"key": key["secretKey"], "name": secret["secretName"]}},
            }
            for secret in kubernetes.get("secretAsEnv", [])
            for key in secret["keyToEnv"]
        ]
        executor_input = _text({
            "inputs": {"parameterValues": values, "artifacts": artifacts},
            "outputs": {"artifacts": written, "outputFile": "/tmp/kfp_outputs/output_metadata.json"},
        })  # fmt: skip
        launcher = (
            f"/kfp-launcher/launch --pipeline_name pipeline-name --run_id {_RUN} --execution_id {digest_text(path)[:4]}"
        )
        command = [
            *launcher.split(),
            "--executor_input",
            executor_input,
            "--component_spec",
            _text(component),
            *_LAUNCHER,
        ]
        settings = {key: value for key, value in kubernetes.items() if key not in ("secretAsEnv", "podMetadata")}
        return _text({
            "containers": [{
                "name": "main", "image": container["image"], "command": command,
                "args": [*container["command"], *container["args"]], "env": [*container.get("env", []), *secrets],
                "resources": container.get("resources"),
            }],
            **settings,
        })  # fmt: skip

    @staticmethod
    def _value(source: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
        """A parameter's value, or another one of its length."""
        if "runtimeValue" in source:
            return source["runtimeValue"]["constant"]
        return known.get(str(source.get("componentInputParameter", "")).split("--")[-1], "x" * 80)


def _artifact(origin: str, name: str) -> dict[str, Any]:
    """An artifact with an address of its own."""
    digest = digest_text(origin)
    address = (
        f"s3://bucket/prefix/kfp/pipeline-name/{_RUN}/task-name/{digest[:8]}-{digest[8:12]}-{digest[12:32]}/{name}"
    )
    return {"name": digest[:4], "uri": address, "type": {"schemaTitle": "system.Dataset"}}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
