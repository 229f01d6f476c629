"""The pods of a run, for an account that may read them: why a task has not started, and how one ended that left no message.

Kubernetes is reached by the user's kubeconfig, or in a pod by its service account, which needs `get` and `list` for pods
(docs/cluster.md). Without it runs are followed as well, with less to say. Loads the kubernetes client on use.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from components.core.config.cluster import StepsConfig
from components.core.storage.task_status import Attempt, TaskStatus

UNSCHEDULABLE_SECONDS = 600.0
"""Time after which an unschedulable pod is reported: an autoscaler adds nodes within minutes."""
CACHED_SECONDS = 30.0
"""Time for which a list of pods is used: it has several kilobytes per pod."""
TIMEOUTS = (5.0, 20.0)
"""Seconds to connect, and between two parts of a response."""
RUN_LABEL = "pipeline/runid"
"""Label that Kubeflow gives all pods of a run: its id."""
_DISRUPTIONS = {
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "DeletionByTaintManager": "was evicted because its node was lost or tainted",
    "EvictionByEvictionAPI": "was evicted, as when a node is drained",
    "DeletionByPodGC": "was on a node that was lost",
    "TerminationByKubelet": "was evicted by its node, which lacked resources or shut down",
}
_NODE_ENDED = {
    "Evicted": "was evicted by its node",
    "NodeLost": "was on a node that was lost",
    "Shutdown": "was on a node that shut down",
    "NodeShutdown": "was on a node that shut down",
    "Terminated": "was on a node that shut down",
}
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
PodState = Literal["queued", "unschedulable", "image", "refused", "starting", "running", "ended"]


@dataclass(frozen=True)
class RunPod:
    """One pod of a run."""

    name: str
    step: str  # the step that it works on; empty for Kubeflow's own, as a driver's
    # `queued` until Kueue admits it; `image` if its image cannot be pulled; `refused` if its container cannot be
    # created
    state: PodState
    # why it is in this state, in Kubernetes' words; how it ended, as the end of `its pod ...`, empty for a success
    reason: str
    out_of_memory: bool  # whether it ended for lack of memory
    memory: str = ""  # its step's limit, as Kubernetes writes it; empty without one
    seconds: float = 0.0  # for how long it has been seen in this state

    @property
    def work(self) -> str:
        """What it works on, for people."""
        return self.step or "driver of Kubeflow"

    @property
    def waits_for(self) -> str:
        """What it waits for; empty once its step runs."""
        return {
            "queued": "the queue",
            "unschedulable": "a node",
            "image": "its image",
            "refused": "its container",
            "starting": "its pod to start",
        }.get(self.state, "")

    @property
    def problem(self) -> str:
        """What keeps it from starting and a user should know; empty if there is nothing."""
        if self.state == "unschedulable" and self.seconds > UNSCHEDULABLE_SECONDS:
            return f"its pod has been unschedulable for {self.seconds / 60:.0f} min ({self.reason})"
        if self.state == "image":
            return f"the image of its pod cannot be pulled ({self.reason})"
        if self.state == "refused":
            return f"the container of its pod cannot be created ({self.reason})"
        return ""


@dataclass
class PodReader:
    """Lists the pods of a run in a namespace."""

    namespace: str
    refusal: str = ""  # why it cannot, for good
    # whether the last list has pods; without any, it is of another namespace or cluster than the run
    known: bool = False
    _api: Any = None
    _listed: tuple[str, float, list[RunPod]] = field(default=("", 0.0, []))
    # By a pod's name and state. When it was created says little: Kueue may have held it for hours.
    _first_seen: dict[tuple[str, PodState], float] = field(default_factory=dict)

    def read(self, run_id: str, seconds: float | None = None) -> list[RunPod]:
        """The pods of a run by its id in KFP, as of the last seconds (None: CACHED_SECONDS); empty if they cannot be listed."""
        of_run, at, pods = self._listed
        if of_run != run_id or time.monotonic() - at > (CACHED_SECONDS if seconds is None else seconds):
            pods = self._list(run_id)
            self._listed = run_id, time.monotonic(), pods
        return pods

    def why_lost(self, attempt: TaskStatus, run_id: str) -> str:
        """Why an attempt at a task of a run stopped reporting, as far as its pod shows it: `its pod ...`."""
        name, node = attempt.pod, f" on node {attempt.node}"
        pod = next((each for each in self.read(run_id, CACHED_SECONDS / 10) if each.name == name), None)
        if self.known and name and pod is None:
            return f"its pod {name}{node} was deleted"
        if pod is not None and pod.state == "ended":
            return f"its pod {name}{node} {pod.reason}{_memory_advice(pod, attempt.step)}"
        if pod is not None:
            return f"it stopped reporting, though its pod {name}{node} is still running; see its log"
        hidden = (
            f"; which of these is unknown, because pods cannot be read ({self.refusal})"
            if self.refusal and name
            else ""
        )
        return f"it stopped reporting: its process was killed, or its pod or its node {attempt.node} is gone{hidden}"

    def why_failed(self, attempt: TaskStatus, run_id: str) -> str:
        """The message of an attempt that failed, with advice if its pod ran out of memory: the system may kill a helper process."""
        pods = self.read(run_id, CACHED_SECONDS / 10) if attempt.kind == "step" and attempt.pod else []
        pod = next((each for each in pods if each.name == attempt.pod and each.out_of_memory), None)
        oom = f" (its pod {pod.reason}{_memory_advice(pod, attempt.step)})" if pod else ""
        return f"{attempt.message}{oom}"

    def unreported(self, run_id: str, attempts: Sequence[Attempt]) -> dict[str, str]:
        """Why work failed that no attempt has reported, by its pod's name; the attempts are from StatusReader."""
        of_pod: dict[str, list[TaskStatus]] = {}
        for attempt in attempts:
            of_pod.setdefault(attempt.status.pod, []).append(attempt.status)
        last = {attempt.status.task: attempt.status for attempt in attempts}
        pods = [each for each in self.read(run_id) if each.state == "ended" and each.reason]
        reasons = {}
        for pod in sorted(pods, key=lambda each: (not each.out_of_memory, not each.step)):
            own, end = of_pod.get(pod.name), f"its pod {pod.name} {pod.reason}"
            if own is None:
                advice = _memory_advice(pod, pod.step)
                reasons[pod.name] = f"{pod.work} failed before it could report: {end}{advice}"
            elif last[own[-1].task] is own[-1] and all(each.state == "finished" for each in own):
                reasons[pod.name] = (
                    f"{own[-1].task} finished, but Kubeflow could not store its outputs: {end}; see its log"
                )
        return reasons

    def waits(self, run_id: str) -> str:
        """What the pods of a run that do not run yet wait for: `6 pretrain for the queue`; empty if nothing is known.

        A driver of Kubeflow runs before each task.
        """
        pods = self.read(run_id)
        waits = Counter((pod.work, pod.waits_for) for pod in pods if pod.waits_for)
        waits.update(("task", "its driver") for pod in pods if not pod.step and pod.state == "running")
        return ", ".join(f"{count} {step} for {what}" for (step, what), count in sorted(waits.items()))

    def run_of(self, pod: str) -> str:
        """The id in KFP of the run that a pod belongs to; empty if it cannot be read."""
        found = self._request(lambda api: api.read_namespaced_pod(pod, self.namespace, _request_timeout=TIMEOUTS))
        return str((found.metadata.labels or {}).get(RUN_LABEL, "")) if found else ""

    def _list(self, run_id: str) -> list[RunPod]:
        self.known = False
        if not run_id:
            return []
        selector = f"{RUN_LABEL}={run_id}"
        found = self._request(
            lambda api: api.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=TIMEOUTS)
        )
        self.known = bool(found and found.items)
        pods, now = [_run_pod(each) for each in found.items] if found else [], time.monotonic()
        return [replace(pod, seconds=now - self._first_seen.setdefault((pod.name, pod.state), now)) for pod in pods]

    def _request(self, request: Callable[[Any], Any]) -> Any:
        """The response of the Kubernetes API; None without one. A refusal ends all requests."""
        import urllib3
        from kubernetes import client, config

        if self.refusal:
            return None
        try:
            self._api = self._api or kubernetes_api()
            return request(self._api)
        except client.ApiException as error:
            if error.status == 403:
                self.refusal = f"{error.status} {error.reason}"
            if error.status == 401:  # credentials may have expired: they are read again
                self._api = None
        except (config.ConfigException, OSError, ValueError) as error:
            self.refusal = " ".join(str(error).split()) or type(error).__name__
        except urllib3.exceptions.HTTPError:
            pass  # it may answer the next time
        return None


def kubernetes_api() -> Any:
    """The Kubernetes API by the user's kubeconfig, or in a pod by its service account; a request makes one attempt.

    Raises:
        kubernetes.config.ConfigException: there is neither, or the kubeconfig cannot be used; names it.
    """
    import yaml
    from kubernetes import client, config

    file = os.environ.get("KUBECONFIG")
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not file:
            config.load_incluster_config()
        else:
            config.load_kube_config(file)
    except (config.ConfigException, OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        name = f"KUBECONFIG {file}" if file else "~/.kube/config"
        raise config.ConfigException(f"{name} cannot be used ({reason})") from None
    settings = client.Configuration.get_default_copy()
    settings.retries = 0
    return client.CoreV1Api(client.ApiClient(settings))


def _run_pod(pod: Any) -> RunPod:
    """What the pod's status says; `pod` is a V1Pod."""
    status, labels = pod.status, pod.metadata.labels or {}
    own = "app.kubernetes.io/component"
    step = labels.get(own, "").replace("-", "_") if labels.get("app.kubernetes.io/name") == "cellsignal" else ""
    containers = [*(status.init_container_statuses or ()), *(status.container_statuses or ())]
    ended = [each.state.terminated for each in containers if each.state and each.state.terminated]
    waiting = [each.state.waiting for each in containers if each.state and each.state.waiting]
    out_of_memory = any(each.reason == "OOMKilled" for each in ended)
    state, reason = _state(status, waiting)
    # A pod on a lost node stays `Running` with a time of deletion until the node is back.
    deleted = pod.metadata.deletion_timestamp is not None
    if deleted or (state == "running" and (status.phase in ("Failed", "Succeeded") or out_of_memory)):
        state, reason = "ended", _end(status, ended, out_of_memory, deleted, step)
    resources = [each.resources for each in pod.spec.containers if each.name == "main" and each.resources]
    memory = str((resources[0].limits or {}).get("memory", "")) if resources else ""
    return RunPod(pod.metadata.name, step, state, reason, out_of_memory, memory)


def _memory_advice(pod: RunPod, step: str) -> str:
    """What to do about a pod that ran out of memory while it worked on a step; a pod may run a group of steps."""
    limit = f"its limit is {pod.memory}" if pod.memory else ""
    advice = f"raise cluster.steps.{step}.memory_gib" if step in StepsConfig.model_fields else ""
    text = ", ".join(filter(None, (limit, advice)))
    return f"; {text}" if text and pod.out_of_memory else ""


def _state(status: Any, waiting: list[Any]) -> tuple[PodState, str]:
    """The state of a pod that has not ended, and why; `running` for one that has."""
    for each in waiting:
        reason = f"{each.reason}: {' '.join((each.message or '').split())}"[:300]
        if each.reason in _IMAGE:
            return "image", reason
        if each.reason in _CONTAINER:
            return "refused", reason
    if status.phase != "Pending":
        return "running", ""
    scheduled = next((each for each in status.conditions or () if each.type == "PodScheduled"), None)
    if scheduled is not None and scheduled.status == "False":
        if scheduled.reason == "SchedulingGated":
            return "queued", ""
        return "unschedulable", " ".join((scheduled.message or scheduled.reason or "").split())[:300]
    return "starting", ""


def _end(status: Any, ended: list[Any], out_of_memory: bool, deleted: bool, step: str) -> str:
    disruption = next((each for each in status.conditions or () if each.type == "DisruptionTarget"), None)
    message = " ".join((status.message or "").split())[:200]
    why = f": {message}" if message else ""
    if status.phase == "Succeeded":
        return ""
    if out_of_memory:
        return "was killed for lack of memory (OOM)"
    if disruption is not None and disruption.status == "True":
        return _DISRUPTIONS.get(disruption.reason, f"was disrupted ({disruption.reason})") + why
    if status.reason in _NODE_ENDED:
        return f"{_NODE_ENDED[status.reason]}{why}"
    if status.reason == "DeadlineExceeded":
        limit = f"cluster.steps.{step}.timeout_hours" if step in StepsConfig.model_fields else "its time limit"
        return f"was stopped after {limit}"
    if deleted:
        return "was deleted"
    code = next((each.exit_code for each in ended if each.exit_code), 0)
    # Kubeflow's launcher, the container's first process, ends with 1 if the step is killed.
    return (
        f"ended with exit code {code} and no message: its process was killed, crashed or could not start; see its log"
    )
