"""cellsignal doctor: checks the machine or pod, the object store, the recorded images and Kubeflow Pipelines; a line per finding.

torch is imported in a process of its own, kfp and kubernetes only to check an endpoint.
The store is tried under a temporary prefix.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from components.core.config import ClusterConfig, RunConfig
from components.core.errors import InputError, StepError
from components.core.files import parse_folder
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import is_folder
from pipelines.checks import check_files, weights_remarks
from pipelines.cluster.pod_settings import REQUIRED_KEYS
from pipelines.cluster.pods import TIMEOUTS, kubernetes_api
from pipelines.images.code_version import code_version
from pipelines.images.record import RECORD, missing_image, read_images, request_status, split_reference

Level = Literal["ok", "warning", "failed"]
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
FAILED = 2
GIB = 1 << 30
LITTLE_GIB, NONE_GIB = 20, 1
"""Free space below which there is a warning, and below which no run works."""
TORCH_SECONDS = 120
KUBEFLOW = "kubeflow"
"""Usual namespace of a Kubeflow for a single user."""
PARTS_MIB = 33
"""A little more than one part of an upload, so that there are two."""
DRIVER = Path("/proc/driver/nvidia/version")
_ASK_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus],
}))
"""


@dataclass(frozen=True)
class Finding:
    """One result: ok, a warning if a run works without it, failed if none does. The message is what is there, or what to do."""

    subject: str
    level: Level
    message: str


def run_doctor(
    config: RunConfig,
    endpoint: str | None,
    images: Path | None,
    console: Console,
    *,
    trains: bool = False,
    as_json: bool = False,
) -> int:
    """Prints the findings as lines or as one JSON object; returns the exit code.

    Args:
        config: has the object store and the namespace.
        endpoint: address of Kubeflow Pipelines; None to check none.
        images: record of the images; None for images.json, if it exists.
        console: where to print.
        trains: whether the configuration was given, so that a training by it is checked, too.
        as_json: whether to print JSON.
    """
    findings = []
    for finding in _findings(config, endpoint, images, trains):
        findings.append(finding)
        if not as_json:
            level = (f"{finding.level:<8}", STYLES[finding.level])
            console.print(Text.assemble(level, (f"{finding.subject:<21} ", "bold"), finding.message), soft_wrap=True)
    levels = [finding.level for finding in findings]
    failed, warnings = levels.count("failed"), levels.count("warning")
    if as_json:
        content = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        console.print(json.dumps(content, indent=1), soft_wrap=True, highlight=False, markup=False)
    else:
        summary = f"{failed} failed" if failed else "everything needed is there"
        summary += f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
        console.print(Text(summary, style=STYLES["failed" if failed else "ok"]))
    return FAILED if failed else 0


def _findings(config: RunConfig, endpoint: str | None, images: Path | None, trains: bool) -> Iterator[Finding]:
    address = config.store.address
    record = images or (RECORD if RECORD.is_file() else None)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": check_versions,
        "GPU": check_gpu,
        "/dev/shm": check_shared_memory,
        "room": lambda: check_room(work_folders(parse_folder(address) if is_folder(address) else None)),
        "object store": lambda: check_store(ObjectStore(address)),
    }
    if record is not None:
        checks["images"] = lambda: check_images(record)
    if endpoint is not None:
        checks["Kubeflow Pipelines"] = lambda: check_endpoint(endpoint, config.cluster)
        checks["Kubernetes"] = lambda: check_namespace(config.cluster)
    with ThreadPoolExecutor(len(checks)) as pool:  # together they take as long as the slowest
        for findings in pool.map(_findings_of, checks, checks.values()):
            yield from findings
    if trains:
        yield from _findings_of("files", lambda: _check_training(config))


def _findings_of(subject: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one check; an error is the last one."""
    found = []
    try:
        for finding in check():
            found.append(finding)  # those before an error stay
    except (InputError, StepError) as error:
        found.append(Finding(subject, "failed", " ".join(str(error).split())))
    except OSError as error:  # a disk that is full or not writable is what doctor looks for
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
        found.append(Finding(subject, "failed", message))
    return found


def _check_training(config: RunConfig) -> Iterator[Finding]:
    """The files that a configuration refers to, as a run checks them, and its initial weights."""
    for remark in weights_remarks(config):
        yield Finding("initial weights", "warning", remark)
    check_files(config)


def check_versions() -> Iterator[Finding]:
    """The interpreter, this code, kfp and the libraries of the object store."""
    yield Finding("python", "ok", platform.python_version())
    yield Finding("cellsignal", "ok", code_version())
    for package in ("kfp", "kfp-server-api", "boto3", "obstore"):
        yield Finding(package, "ok", version(package))


def check_gpu() -> Iterator[Finding]:
    """Torch and the GPUs that it sees; only the driver if there is no torch."""
    driver = _driver()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("torch", "failed", f"did not answer within {TORCH_SECONDS} s; look at the GPU with nvidia-smi")
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        missing = "No module named 'torch'" in last
        message = "not installed: training steps need it, others do not (pip install 'cellsignal[train]')"
        yield Finding("torch", "warning" if missing else "failed", message if missing else last)
        if driver:
            yield Finding("GPU", "warning", f"driver {driver} is there, but no torch to use it")
        return
    found = json.loads(done.stdout.strip().splitlines()[-1])
    yield Finding("torch", "ok", f"{found['torch']}" + (f", CUDA {found['cuda']}" if found["cuda"] else ", CPU only"))
    if found["gpus"]:
        shown = ", ".join(f"{name} ({memory / GIB:.0f} GiB)" for name, memory in found["gpus"])
        yield Finding("GPU", "ok", f"{len(found['gpus'])}: {shown}" + (f", driver {driver}" if driver else ""))
    elif driver and found["cuda"]:
        advice = f"update the driver for CUDA {found['cuda']}, or give the container a GPU"
        yield Finding("GPU", "failed", f"driver {driver} is there, but torch sees no GPU; {advice}")
    elif driver:
        yield Finding("GPU", "failed", f"driver {driver} is there, but torch is built for CPUs; install its CUDA build")
    else:
        yield Finding(
            "GPU",
            "warning",
            "none: training runs on the CPU, which is fast enough only for the demo and small images (cpu-small)",
        )


def _driver() -> str:
    """Version of the NVIDIA driver; empty if there is none."""
    try:
        words = DRIVER.read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "of unknown version")


def check_shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Size of /dev/shm, through which several GPUs of a pod communicate; the loader needs none."""
    if not path.is_dir():
        yield Finding("/dev/shm", "warning", "not there: several GPUs of one pod need it")
        return
    size = shutil.disk_usage(path).total / GIB
    shown = f"{size:.1f} GiB" if size >= 1 else f"{size * 1024:.0f} MiB"
    if size >= NONE_GIB:
        yield Finding("/dev/shm", "ok", shown)
    else:
        advice = "several need more (docker run --shm-size, or an emptyDir of medium Memory)"
        yield Finding("/dev/shm", "warning", f"{shown}; enough for one GPU, {advice}")


def work_folders(store: Path | None) -> dict[str, Path]:
    """The folders that a run here writes to, by purpose; InputError if no folder for temporary files is writable."""
    try:
        work = Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise InputError(
            "no folder for temporary files is writable; mount one (docker run --tmpfs /tmp, an emptyDir at /tmp), or set TMPDIR"
        ) from None
    return {**({"room for the store": store} if store else {}), "room for work": work, "room for results": Path.cwd()}


def check_room(folders: dict[str, Path]) -> Iterator[Finding]:
    """Free space in folders. For a folder that does not exist yet, the nearest existing one above it is checked."""
    for subject, folder in folders.items():
        existing = _existing(folder)
        free = shutil.disk_usage(existing).free / GIB
        message = f"{free:.{0 if free >= 10 else 1}f} GiB free at {folder}"
        if not os.access(existing, os.W_OK):
            yield Finding(subject, "warning", f"{folder} cannot be written by this user")
        elif free < NONE_GIB:
            yield Finding(subject, "failed", f"{message}; make room")
        elif free < LITTLE_GIB:
            yield Finding(subject, "warning", f"{message}; a whole screen needs more")
        else:
            yield Finding(subject, "ok", message)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest existing one above it."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.is_dir())


def check_store(store: ObjectStore) -> Iterator[Finding]:
    """Tries each kind of request on the store, and deletes everything that it wrote.

    If the store's folder does not exist, a temporary one on the same disk is tried instead.
    """
    address = store.uri("")
    with contextlib.ExitStack() as temporary:
        if store.root is not None and not store.root.is_dir():
            folder = tempfile.TemporaryDirectory(prefix=".cellsignal-doctor-", dir=_existing(store.root))
            store = ObjectStore(Path(temporary.enter_context(folder)))
        store.check()
        yield Finding("object store", "ok", address)
        prefix = f"doctor-{uuid.uuid4().hex}"
        try:
            for subject, attempt in OPERATIONS.items():
                started = time.monotonic()
                try:
                    problem = attempt(store, prefix)
                except (InputError, StepError, KeyError) as error:
                    problem = " ".join(str(error).split())
                # Only promotions of models, and repairs of damaged outputs, replace objects.
                level: Level = "ok" if not problem else "warning" if subject == "conditional replace" else "failed"
                yield Finding(subject, level, problem or f"{(time.monotonic() - started) * 1000:.0f} ms")
        finally:
            try:
                store.delete_prefix(f"{prefix}/")
            except (InputError, StepError) as error:
                yield Finding("temporary objects", "warning", f"{store.uri(prefix)} could not be deleted ({error})")


def _put_and_get(store: ObjectStore, prefix: str) -> str:
    content = secrets.token_bytes(100_000)
    store.put(f"{prefix}/small", content)
    if store.get(f"{prefix}/small") != content or store.get_many([f"{prefix}/small"]) != [content]:
        return "the object came back with other bytes; this store loses data, use another"
    return ""


def _multipart(store: ObjectStore, prefix: str) -> str:
    content = secrets.token_bytes(PARTS_MIB << 20)
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        file = Path(folder) / "file"
        file.write_bytes(content)
        store.upload_file(file, f"{prefix}/large")
        store.download_file(f"{prefix}/large", file)
        if file.read_bytes() != content:
            return f"{PARTS_MIB} MiB in parts came back with other bytes; this store loses data, use another"
    return ""


def _conditional_put(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/once"
    if not store.put_if_version(key, b"first"):
        return "a conditional put (If-None-Match: *) of a new object was refused; update the store"
    if store.put_if_version(key, b"second") or store.get(key) != b"first":
        return "conditional puts are ignored, so that two pods could overwrite each other; use a store that honours If-None-Match"
    return ""


def _conditional_replace(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/twice"
    store.put(key, b"first")
    _, version = store.get_versioned(key)
    if not store.put_if_version(key, b"second", version) or store.get(key) != b"second":
        return "a conditional put (If-Match) was refused, which promoting models needs (`cellsignal models`); update the store"
    if store.put_if_version(key, b"third", version) or store.get(key) != b"second":
        return "If-Match is ignored, so that two promotions of models could overwrite each other; use a store that honours it"
    return ""


def _list_and_delete(store: ObjectStore, prefix: str) -> str:
    keys = [f"{prefix}/listed/a", f"{prefix}/listed/b"]
    for key in keys:
        store.put(key, b"x")
    if list(store.list(f"{prefix}/listed/")) != keys:
        return "a listing lacks objects that were just written; use a consistent store"
    store.delete(keys[0])
    store.delete_prefix(f"{prefix}/listed/")
    return "deleted objects are still listed; use a consistent store" if store.list(f"{prefix}/listed/") else ""


OPERATIONS: dict[str, Callable[[ObjectStore, str], str]] = {
    "put, get": _put_and_get,
    "multipart": _multipart,
    "conditional put": _conditional_put,
    "conditional replace": _conditional_replace,
    "list, delete": _list_and_delete,
}
"""What a store must be able to do; each returns the problem, or nothing."""


def check_images(record: Path) -> Iterator[Finding]:
    """Looks for each image of a record in its registry."""
    found = read_images(record)
    yield Finding("images", "ok", f"{record}: version {found.version}, commit {found.commit}")
    with ThreadPoolExecutor() as pool:
        for target, result in zip(found.references, pool.map(_in_registry, found.references.values()), strict=True):
            yield Finding(f"{target} image", *result)


def _in_registry(reference: str) -> tuple[Level, str]:
    registry, name, digest = split_reference(reference)
    try:
        status = request_status(reference)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        return "warning", f"{registry} cannot be reached from here ({why}); the cluster must reach it"
    if status == 200:
        return "ok", f"{registry}/{name} has {digest[:19]}..."
    if status == 404:
        return "failed", missing_image(reference)
    if status in (401, 403):
        return "warning", f"not checked: {registry} requires a login for {name} ({status})"
    return "warning", f"{registry} answers {status} to a request for {name}"


def check_endpoint(url: str, config: ClusterConfig) -> Iterator[Finding]:
    """Whether Kubeflow Pipelines answers, and gives access to the namespace, as `cellsignal submit` needs."""
    from pipelines.cluster.endpoint import KfpEndpoint, Login

    login = Login.from_environment()
    endpoint = KfpEndpoint(url, login, config.namespace)
    yield Finding("Kubeflow Pipelines", "ok", f"{endpoint.version} at {endpoint.url}, with {login.how}")
    ours, theirs = version("kfp"), endpoint.version.lstrip("v")
    if theirs[:1].isdigit() and theirs.split(".")[:1] != ours.split(".")[:1]:
        message = f"the server is {endpoint.version}, pipelines are compiled by kfp {ours}; update it"
        yield Finding("its version", "failed", message)
    endpoint.client.list_experiments(page_size=1)
    if endpoint.namespace:
        yield Finding("namespace", "ok", f"{config.namespace}: its experiments can be listed")
    else:
        message = "a single user's Kubeflow: pods start in its own namespace"
        if config.namespace == KUBEFLOW:
            yield Finding("namespace", "ok", f"{message}, {KUBEFLOW}")
        else:
            advice = f"set cluster.namespace to it, usually {KUBEFLOW} (now {config.namespace}, which is checked below)"
            yield Finding("namespace", "warning", f"{message}; {advice}")


def check_namespace(config: ClusterConfig) -> Iterator[Finding]:
    """Whether the account and the Secrets of a run's pods are in their namespace, and the pods can be read, if this user may."""
    from kubernetes import client
    from kubernetes import config as kubeconfig
    from urllib3.exceptions import HTTPError

    namespace, secrets = config.namespace, [config.store_secret, *config.image_pull_secrets]
    wanted = [("service account", config.service_account), *(("secret", name) for name in secrets if name)]
    unchecked = f"not checked whether namespace {namespace} has"
    try:
        api = kubernetes_api()
        for kind, name in wanted:
            read = api.read_namespaced_secret if kind == "secret" else api.read_namespaced_service_account
            try:
                found = read(name, namespace, _request_timeout=TIMEOUTS)
            except client.ApiException as error:
                if error.status == 404:
                    message = f"namespace {namespace} has no {name}; create it (docs/cluster.md), or correct the section cluster"
                    yield Finding(kind, "failed", message)
                else:
                    yield Finding(kind, "warning", f"{unchecked} {name}: {error.status} {error.reason}")
                continue
            missing = (
                {*REQUIRED_KEYS} - {*(found.data or {})} if kind == "secret" and name == config.store_secret else ()
            )
            if missing:
                message = f"{name} in namespace {namespace} lacks {' and '.join(sorted(missing))}; create it again"
                yield Finding(kind, "failed", message)
            else:
                yield Finding(kind, "ok", f"{name} in namespace {namespace}")
        try:
            api.list_namespaced_pod(namespace, limit=1, _request_timeout=TIMEOUTS)
            yield Finding("pods", "ok", f"those of namespace {namespace} can be read")
        except client.ApiException as error:
            message = f"those of namespace {namespace} cannot be read ({error.status} {error.reason}), so no message says why one"
            yield Finding(
                "pods", "warning", f"{message} does not start, or how it ended; bind the Role cellsignal-follow"
            )
    except (kubeconfig.ConfigException, HTTPError, OSError, ValueError) as error:
        names, reason = ", ".join(name for _, name in wanted), " ".join(str(error).split())[:200]
        yield Finding("Kubernetes", "warning", f"{unchecked} {names}: {reason}")
