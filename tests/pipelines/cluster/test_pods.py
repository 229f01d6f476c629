"""What the status of a pod says: why it has not started, how it ended."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient

from components.core.storage.task_status import Attempt, TaskStatus
from pipelines.cluster import pods
from pipelines.cluster.pods import PodReader
from tests.pipelines.cluster.kfp_server import Fault, KfpServer
from tests.pipelines.cluster.simulated_cluster import SimulatedCluster, SimulatedRun, write_kubeconfig

NOW = datetime.now(UTC)
LABELS = {"app.kubernetes.io/name": "cellsignal", "app.kubernetes.io/component": "pseudo-label", "pipeline/runid": "7"}
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


@dataclass
class Response:
    """As the Kubernetes client reads them."""

    data: str


def main(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "main", "image": "gpu", "imageID": "", "ready": False, "restartCount": 0, "state": state}]


def pod(phase: str = "Pending", minutes: float = 1.0, labels: dict[str, str] = LABELS, **status: Any) -> dict[str, Any]:
    """A pod that is some minutes old; `deleted` is when it was."""
    times = {"creationTimestamp": (NOW - timedelta(minutes=minutes)).isoformat()}
    if deleted := status.pop("deleted", None):
        times["deletionTimestamp"] = deleted
    spec = {"containers": [{"name": "main", "resources": {"limits": {"memory": "24Gi"}}}, {"name": "wait"}]}
    return {
        "metadata": {"name": "run-1", "labels": labels, **times},
        "spec": spec,
        "status": {"phase": phase, **status},
    }


def read(content: dict[str, Any]) -> pods.RunPod:
    return pods._run_pod(ApiClient().deserialize(Response(json.dumps(content)), "V1Pod"))


def scheduled(reason: str, message: str = "") -> list[dict[str, str]]:
    return [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]


@pytest.mark.parametrize(
    ("content", "waits_for", "problem"),
    [
        (pod(), "its pod to start", ""),
        (pod(conditions=scheduled("SchedulingGated")), "the queue", ""),
        (pod(conditions=scheduled("Unschedulable", "0/3 nodes")), "a node", ""),
        (pod(containerStatuses=main(waiting={"reason": "PodInitializing"})), "its pod to start", ""),
        (
            pod(containerStatuses=main(waiting={"reason": "ErrImagePull", "message": "not\n found"})),
            "its image",
            "the image of its pod cannot be pulled (ErrImagePull: not found)",
        ),
        (
            pod(
                containerStatuses=main(
                    waiting={"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}
                )
            ),
            "its container",
            'the container of its pod cannot be created (CreateContainerConfigError: secret "x" not found)',
        ),
        (pod("Running", containerStatuses=main(running={})), "", ""),
    ],
)
def test_why_a_pod_has_not_started(content: dict[str, Any], waits_for: str, problem: str) -> None:
    found = read(content)
    assert found.step == "pseudo_label"
    assert found.waits_for == waits_for
    assert found.problem.endswith(problem)
    assert bool(found.problem) == bool(problem)


KILLED = main(terminated={"exitCode": 137, "reason": "Error"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pod("Failed", containerStatuses=main(terminated={"exitCode": 1, "reason": "OOMKilled"})), "was killed for lack of memory"),
        (pod("Failed", containerStatuses=KILLED), "ended with exit code 137 and no message"),
        (pod("Failed", reason="Evicted", message='Usage of EmptyDir volume "scratch"'), 'evicted by its node: Usage of EmptyDir'),
        (pod("Failed", reason="DeadlineExceeded"), "was stopped after cluster.steps.pseudo_label.timeout_hours"),
        (pod("Failed", reason="DeadlineExceeded", labels={}), "was stopped after its time limit"),
        (pod("Failed", conditions=[{**DISRUPTED, "reason": "PreemptionByScheduler"}]), "was preempted by a pod of higher"),
        (pod("Failed", conditions=[{**DISRUPTED, "reason": "New"}]), "was disrupted (New)"),
        (pod("Running", deleted=NOW.isoformat(), conditions=[{**DISRUPTED, "reason": "DeletionByTaintManager"}]), "node was lost"),
        (pod("Running", deleted=NOW.isoformat(), reason="NodeLost"), "was on a node that was lost"),
        (pod("Running", deleted=NOW.isoformat()), "was deleted"),
        (pod("Succeeded", containerStatuses=main(terminated={"exitCode": 0})), ""),
    ],
)  # fmt: skip
def test_how_a_pod_ended(content: dict[str, Any], reason: str) -> None:
    found = read(content)
    assert found.state == "ended"
    assert reason in found.reason
    assert bool(reason) == bool(found.reason)
    assert found.out_of_memory == ("memory" in reason)


def test_a_driver_of_kubeflow_has_no_step() -> None:
    found = read(pod("Running", labels={"pipeline/runid": "7"}))
    assert (found.step, found.work) == ("", "driver of Kubeflow")


@pytest.fixture
def reader(server: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PodReader:
    """A reader of a cluster with a run `7` of one pod."""
    write_kubeconfig(tmp_path / "kubeconfig", server.url)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    server.cluster = SimulatedCluster(store=None, config=None, graph=None)  # type: ignore[arg-type]
    server.cluster.runs["7"] = SimulatedRun("7", "tiny-1", "{}", pods={"run-1": pod("Running")})
    return PodReader("cellsignal")


def lost(name: str) -> TaskStatus:
    return TaskStatus(step="pretrain", started=NOW, updated=NOW, node="node-7", pod=name)


def test_a_pod_is_called_deleted_only_if_others_of_its_run_are_found(reader: PodReader) -> None:
    """Without any, the list is of another namespace or cluster."""
    assert reader.why_lost(lost("run-2"), "7") == "its pod run-2 on node node-7 was deleted"
    assert "its process was killed, or its pod or its node node-7 is gone" in reader.why_lost(lost("run-2"), "8")
    assert "though its pod run-1 on node node-7 is still running" in reader.why_lost(lost("run-1"), "7")
    assert "is gone" in reader.why_lost(lost(""), "7")


def test_a_list_is_used_again_for_a_while_and_an_outage_is_not_final(reader: PodReader, server: KfpServer) -> None:
    server.faults.append(Fault(503, path="/api/v1/"))
    assert (reader.read("7"), reader.known, reader.refusal) == ([], False, "")
    assert [each.name for each in reader.read("7", 0.0)] == ["run-1"]
    assert (reader.known, reader.run_of("run-1"), reader.run_of("run-9")) == (True, "7", "")
    asked = len(server.asked("GET", "/api/v1/"))
    assert [each.name for each in reader.read("7")] == ["run-1"]
    assert len(server.asked("GET", "/api/v1/")) == asked


def test_expired_credentials_are_read_again_and_a_refusal_is_final(reader: PodReader, server: KfpServer) -> None:
    server.faults.append(Fault(401, path="/api/v1/"))
    assert reader.read("7") == []
    assert len(reader.read("7", 0.0)) == 1
    server.faults.append(Fault(403, path="/api/v1/"))
    for _ in range(3):
        assert reader.read("7", 0.0) == []
    assert reader.refusal.startswith("403")
    assert server.faults[-1].times == 0


def test_a_kubeconfig_that_is_no_yaml_is_a_refusal(reader: PodReader, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("clusters: [{")
    assert reader.read("7") == []
    assert "kubeconfig" in reader.refusal


def test_a_pod_is_unschedulable_since_it_was_first_seen_so(
    reader: PodReader, server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not since it was created: a queue may have held it for an hour."""
    monkeypatch.setattr(pods, "UNSCHEDULABLE_SECONDS", 0.2)
    assert server.cluster is not None
    held = server.cluster.runs["7"].pods
    held["run-1"] = pod(minutes=60, conditions=scheduled("SchedulingGated"))
    reader.read("7", 0.0)
    time.sleep(0.3)
    held["run-1"] = pod(minutes=60, conditions=scheduled("Unschedulable", "0/3 nodes"))
    assert [each.problem for each in reader.read("7", 0.0)] == [""]
    time.sleep(0.3)
    (found,) = reader.read("7", 0.0)
    assert found.problem == "its pod has been unschedulable for 0 min (0/3 nodes)"
    assert found.waits_for == "a node"


OUT_OF_MEMORY = main(terminated={"exitCode": 137, "reason": "OOMKilled"})


@pytest.mark.parametrize(
    ("labels", "step", "advice"),
    [
        (LABELS, "pseudo_label", "; its limit is 24Gi, raise cluster.steps.pseudo_label.memory_gib"),
        ({**LABELS, "app.kubernetes.io/component": "finetune-pseudo-label"}, "", "; its limit is 24Gi"),
    ],
)
def test_the_advice_about_memory_names_the_pods_own_limit(
    reader: PodReader, server: KfpServer, labels: dict[str, str], step: str, advice: str
) -> None:
    assert server.cluster is not None
    server.cluster.runs["7"].pods["run-1"] = pod("Failed", labels=labels, containerStatuses=OUT_OF_MEMORY)
    assert reader.unreported("7", [])["run-1"].endswith(f"was killed for lack of memory (OOM){advice}")
    attempt = lost("run-1").model_copy(update={"step": step or "finetune"})
    field = step or "finetune"
    expected = f"; its limit is 24Gi, raise cluster.steps.{field}.memory_gib"
    assert reader.why_lost(attempt, "7").endswith(f"was killed for lack of memory (OOM){expected}")


def test_a_pod_is_explained_only_if_no_attempt_or_later_one_explains_it(reader: PodReader, server: KfpServer) -> None:
    assert server.cluster is not None
    server.cluster.runs["7"].pods["run-1"] = pod("Failed", containerStatuses=KILLED)
    killed, finished = lost("run-1"), lost("run-1").model_copy(update={"state": "finished"})
    assert reader.unreported("7", [Attempt(killed, 0.0)]) == {}
    (reason,) = reader.unreported("7", [Attempt(killed.model_copy(update={"pod": "other"}), 0.0)]).values()
    assert reason.startswith("pseudo_label failed before it could report: its pod run-1 ended with exit code 137")
    (reason,) = reader.unreported("7", [Attempt(finished, 0.0)]).values()
    assert reason.startswith("pretrain finished, but Kubeflow could not store its outputs: its pod run-1 ended with")
    later = finished.model_copy(update={"pod": "run-2"})
    assert reader.unreported("7", [Attempt(finished, 0.0), Attempt(later, 0.0)]) == {}
