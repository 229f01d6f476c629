"""Checks a pod against the controls of Kubernetes' restricted Pod Security Standard that a pod of ours could break. For tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod: Mapping[str, Any]) -> list[str]:
    """Violations of the standard in a pod's spec, a sentence each; empty if there are none."""
    return list(_of_pod(pod))


def _of_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    whole = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name} is set"
    for volume in pod.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(sorted(kinds))}"
    for container in (*pod.get("containers", []), *pod.get("initContainers", [])):
        name, own = container["name"], container.get("securityContext", {})
        context = {**whole, **own}
        if own.get("privileged"):
            yield f"{name} is privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may escalate privileges"
        if own.get("capabilities", {}) != {"drop": ["ALL"]}:
            yield f"{name} keeps capabilities"
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{name} has a host port"
