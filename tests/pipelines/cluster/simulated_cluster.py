"""A cluster behind the Kubeflow stand-in: it executes the DAG of a run with tiny tasks, and lists its pods as Kubernetes does.

As measured on a real installation (KFP 2.17, Argo 4.0), with times scaled down:

- A failed task is retried after a backoff, as the installation's retry policy chooses: `OnError` retries deleted pods alone,
  `Always` also processes that fail. Without a retry, a task fails once the backoff has passed.
- Branches that do not need a failed task run to their end; only then the run has failed. A loop with a failed fold ends the run.
- A task that has succeeded is taken from Kubeflow's cache when the run is submitted again: without a pod and without a report.
- The `task_details` of a run are never updated again once it has more than a dozen tasks.
- A run that is terminated is `CANCELING`, then `FAILED`, as its workflow is.
- A pod on a lost node stays `Running` with a time of deletion, and its run never ends by itself.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from components.core.config import RunConfig
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RUN, RunRecord, run_file
from components.core.storage.task_status import NODE_VARIABLE, POD_VARIABLE, StatusReporter
from pipelines.dag import DagTask, TaskGraph
from tests.pipelines.cluster.kfp_server import RefusedError

DETAILED = 12
"""Tasks of a run until its task details freeze."""
LAUNCHER_FAILED = {"exitCode": 1, "reason": "Error"}
"""How the container of a step ends if its process failed or was killed."""
GRACE = 0.6
"""Seconds until a terminated run has ended."""
MEMORY = "24Gi"
"""Limit of every pod, by whatever configuration."""
PENDING = ("queue", "unschedulable", "image")
"""Faults that a pod gets over in time."""
Group = tuple[DagTask, ...]
"""Tasks that one pod works on, one after another."""
End = Literal["succeeded", "failed", "error"]
Fault = Literal["start", "exit", "input", "kill", "oom", "delete", "evict", "node", "queue", "unschedulable", "image"]


@dataclass
class SimulatedRun:
    """One start of a run."""

    run_id: str
    key: str
    lineage: str
    state: str = "RUNNING"
    details: dict[str, str] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    succeeded: dict[int, Future[bool]] = field(default_factory=dict)  # by number of the task
    terminated: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> bool:
        """Waits; returns False if the run is terminated before."""
        return not self.terminated.wait(seconds)


@dataclass
class SimulatedCluster:
    """Executes runs of one DAG.

    Attributes:
        store: of the run's records and reports.
        config: configuration of the runs.
        graph: their DAG.
        policy: Argo's retryPolicy.
        faults: what happens to an attempt at a task, by its name and the attempt's number, which starts at 1 and counts all starts.
            The pod of a `queue`, `unschedulable` or `image` fault waits for `pending` seconds, then works.
        may_read_pods: whether Kubernetes lets the user list pods.
        backoff, begin, work, pending: seconds before a retry, before a run's first task, of a task's work, and of a pod that cannot
            start.
        slow: seconds of work by name of a task.
        places: pods that work at the same time; further ones wait in the queue.
        pods_of: number of pods that each task has had.
    """

    store: ObjectStore
    config: RunConfig
    graph: TaskGraph
    policy: Literal["OnError", "Always"] = "OnError"
    faults: dict[tuple[str, int], Fault] = field(default_factory=dict)
    may_read_pods: bool = True
    backoff: float = 0.2
    begin: float = 0.1
    work: float = 0.05
    pending: float = 1.0
    slow: dict[str, float] = field(default_factory=dict)
    retries: int = 3
    places: int = 8
    pods_of: Counter[str] = field(default_factory=Counter)
    cached: set[str] = field(default_factory=set)
    runs: dict[str, SimulatedRun] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = threading.Semaphore(self.places)

    def start(self, made: Mapping[str, Any]) -> None:
        """Starts a run by its JSON in KFP."""
        lineage = made["runtime_config"]["parameters"]["lineage"]
        run = SimulatedRun(made["run_id"], str(made["display_name"]).split(" ")[0], lineage)
        self.runs[run.run_id] = run
        self._threads.append(threading.Thread(target=self._execute, args=(run,), daemon=True))
        self._threads[-1].start()

    def terminate(self, run_id: str) -> None:
        """Deletes the pods of a run; it has failed once they are gone."""
        self.runs[run_id].terminated.set()

    def stop(self) -> None:
        """Ends all runs."""
        for run in self.runs.values():
            run.terminated.set()
        for thread in self._threads:
            thread.join()

    def state(self, run_id: str) -> str:
        """The run's own state in KFP."""
        run = self.runs[run_id]
        return "CANCELING" if run.terminated.is_set() and run.state == "RUNNING" else run.state

    def task_details(self, run_id: str) -> list[dict[str, str]]:
        """The states of its tasks as KFP's API has them."""
        details = self.runs[run_id].details
        return [
            {"run_id": run_id, "task_id": name, "display_name": name, "state": details[name]} for name in [*details]
        ]

    def pods(self, selector: str, name: str = "") -> dict[str, Any]:
        """The answer of Kubernetes to a request for the pods with a label, or for the one with a name."""
        if not self.may_read_pods:
            raise RefusedError(403, 'pods is forbidden: User "ada" cannot list resource "pods"', 403)
        found = {name: pod for run in self.runs.values() for name, pod in [*run.pods.items()]}
        if name:
            if name not in found:
                raise RefusedError(404, f'pods "{name}" not found', 404)
            return found[name]
        key, _, value = selector.partition("=")
        return {"kind": "PodList", "items": [pod for pod in found.values() if pod["metadata"]["labels"][key] == value]}

    def _execute(self, run: SimulatedRun) -> None:
        groups = [(task,) for task in self.graph.tasks]
        if self.config.cluster.group == "fold":
            groups = self.graph.groups()
        folds: dict[int | None, list[Group]] = {}
        for group in groups:
            folds.setdefault(group[0].fold, []).append(group)
        first, *rest = folds.pop(None)
        driver = _new_pod(run.run_id, "")
        run.pods["driver"] = _set(driver, "Running", running={"startedAt": _now()})
        succeeded = run.wait(self.begin)
        _set(driver, "Succeeded", terminated={"exitCode": 0, "reason": "Completed"})
        succeeded = succeeded and self._all_succeed(run, [first])
        if succeeded:
            with ThreadPoolExecutor(self.config.cluster.parallel_folds) as loop:
                succeeded = all([*loop.map(lambda fold: self._all_succeed(run, folds[fold]), folds)])
        succeeded = succeeded and self._all_succeed(run, rest)
        if run.terminated.is_set():
            time.sleep(GRACE)  # its pods end
        run.state = "SUCCEEDED" if succeeded and not run.terminated.is_set() else "FAILED"

    def _all_succeed(self, run: SimulatedRun, groups: Sequence[Group]) -> bool:
        """Works on groups of tasks side by side, each once those that it needs have succeeded."""
        with ThreadPoolExecutor(len(groups)) as pool:
            started = []
            for group in groups:
                started.append(pool.submit(self._succeeds, run, group))
                run.succeeded.update((task.number, started[-1]) for task in group)
        return all(each.result() for each in started)

    def _succeeds(self, run: SimulatedRun, group: Group) -> bool:
        """Works on the tasks of a pod with its retries."""
        needs = {number for task in group for number in task.needs} - {task.number for task in group}
        if not all(run.succeeded[number].result() for number in needs):
            return False
        if self.config.cluster.caching and group[0].name in self.cached:
            self._detail(run, group[0], "SKIPPED")
            return True
        self._detail(run, group[0], "RUNNING")
        for _ in range(self.retries + 1):
            end = self._attempt(run, group)
            if end == "succeeded":
                self.cached.add(group[0].name)
                self._detail(run, group[0], "SUCCEEDED")
                return True
            if not run.wait(self.backoff) or (end == "failed" and self.policy == "OnError"):
                break
        self._detail(run, group[0], "FAILED")
        return False

    def _detail(self, run: SimulatedRun, task: DagTask, state: str) -> None:
        with self._lock:
            if len(run.details) <= DETAILED:
                run.details[task.name] = state

    def _attempt(self, run: SimulatedRun, group: Group) -> End:
        """Works in one pod. An error is what Argo calls one: the pod is gone."""
        with self._lock:
            self.pods_of.update(task.name for task in group)
            fault = self.faults.get((group[0].name, self.pods_of[group[0].name]), "")
        pod = _new_pod(run.run_id, "-".join(dict.fromkeys(task.step for task in group)))
        name = pod["metadata"]["name"]
        run.pods[name] = pod
        if fault in PENDING:
            _pend(pod, fault)
            run.wait(self.pending)
        else:
            _pend(pod, "queue")
        while not self._free.acquire(timeout=0.05):
            if run.terminated.is_set():
                break
        else:
            try:
                return self._work_on_all(run, group, pod)
            finally:
                self._free.release()
                if run.terminated.is_set():
                    run.pods.pop(name, None)
        run.pods.pop(name, None)
        return "error"

    def _work_on_all(self, run: SimulatedRun, group: Group, pod: dict[str, Any]) -> End:
        if run.terminated.is_set():
            return "error"
        _set(pod, "Running", running={"startedAt": _now()})
        for task in group:
            end = self._work(run, task, pod, self.faults.get((task.name, self.pods_of[task.name]), ""))
            if end != "succeeded":
                return end
        _set(pod, "Succeeded", terminated={"exitCode": 0, "reason": "Completed"})
        return "succeeded"

    def _work(self, run: SimulatedRun, task: DagTask, pod: dict[str, Any], fault: str) -> End:
        name, labels = pod["metadata"]["name"], {"step": task.step, **task.labels}
        if fault == "start":
            _set(pod, "Failed", terminated=LAUNCHER_FAILED)
            return "failed"
        environment = {POD_VARIABLE: name, NODE_VARIABLE: "node-7"}
        reporter = StatusReporter(self.store.uri(""), run.key, labels, environment)
        for done in (1, 2):
            reporter({"event": "advance", "what": "sites", "done": done, "total": 2})
            if not run.wait(self.slow.get(task.name, self.work) / 2):
                fault = "delete"
            if fault in ("exit", "input"):
                kind = "step" if fault == "exit" else "input"
                message = "CUDA error: lost" if fault == "exit" else "train.csv row 7: no such well"
                reporter({"event": "failed", "kind": kind, "message": message})
                _set(pod, "Failed", terminated=LAUNCHER_FAILED)
                return "failed"
            if fault and fault not in PENDING:
                reporter.stop()
                return self._break(run, pod, fault)
        if task.step == "normalize":
            config = self.config.model_dump(mode="json", exclude={"cluster", "local"})  # as of the manifest
            record = RunRecord(key=run.key, config=config, lineage=_lineage(run))
            self.store.put(run_file(run.key, RUN), record.to_json())
        reporter({"event": "finish"})
        return "succeeded"

    def _break(self, run: SimulatedRun, pod: dict[str, Any], fault: str) -> End:
        """Ends a pod whose process has been killed."""
        if fault == "kill":
            _set(pod, "Failed", terminated=LAUNCHER_FAILED)
        elif fault == "oom":
            _set(pod, "Failed", terminated={"exitCode": 137, "reason": "OOMKilled"})
        elif fault == "evict":
            _set(pod, "Failed", terminated={"exitCode": 137, "reason": "Error"}, disruption="TerminationByKubelet")
            pod["status"].update(reason="Evicted", message="The node was low on resource: ephemeral-storage.")
        elif fault == "node":
            pod["metadata"]["deletionTimestamp"] = _now()
            pod["status"]["conditions"].append(_condition("DisruptionTarget", "True", "DeletionByTaintManager"))
            run.terminated.wait()
            return "error"
        else:
            run.pods.pop(pod["metadata"]["name"], None)
            return "error"
        return "failed"


def write_kubeconfig(file: Path, url: str) -> None:
    """Writes the configuration of a Kubernetes client for the API at an address."""
    file.write_text(
        f"{{apiVersion: v1, kind: Config, current-context: here, clusters: [{{name: here, cluster: {{server: '{url}'}}}}], "
        "users: [{name: ada, user: {token: t}}], contexts: [{name: here, context: {cluster: here, user: ada}}]}\n"
    )


def _lineage(run: SimulatedRun) -> dict[str, Any]:
    return {**json.loads(run.lineage), "run": run.key}


def _new_pod(run_id: str, step: str) -> dict[str, Any]:
    """The pod of a step, or without one of a driver of Kubeflow."""
    component = step.replace("_", "-") or "driver"
    own = {"app.kubernetes.io/name": "cellsignal", "app.kubernetes.io/component": component} if step else {}
    return {
        "metadata": {
            "name": f"run-{component}-{uuid.uuid4().hex[:8]}",
            "creationTimestamp": _now(),
            "labels": {"pipeline/runid": run_id, **own},
        },
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": MEMORY}}}]},
        "status": {"phase": "Pending", "conditions": []},
    }


def _pend(pod: dict[str, Any], why: str) -> None:
    """A pod that has not started, and why."""
    if why == "image":
        message = 'Back-off pulling image "registry/gpu@sha256:1"'
        _set(pod, "Pending", waiting={"reason": "ImagePullBackOff", "message": message})
        return
    reason = "SchedulingGated" if why == "queue" else "Unschedulable"
    message = "" if why == "queue" else "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pod["status"]["conditions"] = [_condition("PodScheduled", "False", reason, message)]


def _set(pod: dict[str, Any], phase: str, disruption: str = "", **state: Mapping[str, Any]) -> dict[str, Any]:
    """Sets the phase of a pod and the state of its container; returns the pod."""
    main = {"name": "main", "image": "gpu", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    conditions = [_condition("PodScheduled", "True")]
    if disruption:
        conditions.append(_condition("DisruptionTarget", "True", disruption))
    pod["status"] = {"phase": phase, "conditions": conditions, "containerStatuses": [main]}
    return pod


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def _now() -> str:
    return datetime.now(UTC).isoformat()
