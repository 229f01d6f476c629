"""Checks a pod against the controls of Kubernetes' restricted Pod Security Standard. For tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP = {"RuntimeDefault", "Localhost"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")


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
    for sysctl in whole.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']} is not safe"
    yield from _identity("the pod", whole)
    containers = [*pod.get("containers", []), *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])]
    for container in containers:
        yield from _of_container(container, whole)


def _of_container(container: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[str]:
    own, name = container.get("securityContext", {}), container["name"]
    yield from _identity(name, own)
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may escalate privileges"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name} keeps capabilities"
    if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
        yield f"{name} may run as root"
    if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in SECCOMP:
        yield f"{name} has no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} has another procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name} has a host port"
    for handler in _handlers(container):
        if any(isinstance(how, Mapping) and how.get("host") for how in handler.values()):
            yield f"{name} has a probe or hook of another host"


def _handlers(container: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    probes = [container[name] for name in HANDLERS if name in container]
    return [*probes, *container.get("lifecycle", {}).values()]


def _identity(subject: str, context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{subject} runs as root"
    if context.get("runAsNonRoot") is False:
        yield f"{subject} may run as root"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{subject} sets SELinux options"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield f"{subject} is without AppArmor"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{subject} is a Windows host process"
