"""What `cellsignal doctor` finds about this machine or pod, the recorded images and Kubeflow Pipelines.

torch is imported in a process of its own, kfp only to check an endpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from components.core.config.cluster import ClusterConfig
from components.core.errors import InputError, StepError
from pipelines.images.code_version import code_version
from pipelines.images.engine import connect, one_line
from pipelines.images.record import missing_image, read_images, request_status, split_reference

Level = Literal["ok", "warning", "failed"]
GIB = 1 << 30
LITTLE_GIB, NONE_GIB = 20, 1
"""Free space below which there is a warning, and below which no run works."""
TORCH_SECONDS = 120
_ASK_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available(),
    "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus],
}))
"""
DRIVER = Path("/proc/driver/nvidia/version")
ENGINE_SECONDS = 10


@dataclass(frozen=True)
class Finding:
    """One result.

    Attributes:
        subject: what was checked.
        level: ok; warning if a run works without it; failed if none does.
        message: what is there, or what to do.
    """

    subject: str
    level: Level
    message: str


def guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an error ends it and becomes one of them."""
    try:
        yield from check()
    except (InputError, StepError) as error:
        yield Finding(subject, "failed", " ".join(str(error).split()))
    except OSError as error:  # a disk that is full or not writable is what is being looked for
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
        yield Finding(subject, "failed", message)


def check_versions() -> Iterator[Finding]:
    """The interpreter, this code, kfp and the libraries of the object store."""
    python = platform.python_version()
    fine = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if fine else "failed", python if fine else f"{python}; 3.11 or later is needed")
    yield Finding("cellsignal", "ok", code_version())
    for package in ("kfp", "kfp-server-api", "boto3", "obstore"):
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "failed", "not installed; install cellsignal with its dependencies")


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
        yield Finding(
            "GPU", "failed", f"driver {driver} is there, but torch sees no GPU; update the driver for CUDA {found['cuda']}, or "
            "give the container a GPU"
        )  # fmt: skip
    elif driver:
        yield Finding("GPU", "failed", f"driver {driver} is there, but torch is built for CPUs; install its CUDA build")
    else:
        yield Finding("GPU", "warning", "none: training runs on the CPU, which is fast enough for the demo only")


def check_room(folders: dict[str, Path]) -> Iterator[Finding]:
    """Free space where runs write.

    Args:
        folders: by what is kept there; for a folder that does not exist yet, the nearest one above it is checked.
    """
    for subject, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(there).free / GIB
        level: Level = "failed" if free < NONE_GIB else "warning" if free < LITTLE_GIB else "ok"
        advice = {"ok": "", "warning": "; a whole screen needs more", "failed": "; make room"}[level]
        message = f"{free:.{0 if free >= 10 else 1}f} GiB free at {folder}{advice}"
        if not os.access(there, os.W_OK):
            level, message = "warning", f"{folder} cannot be written by this user"
        yield Finding(subject, level, message)


def check_shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Size of /dev/shm, through which several GPUs of a pod communicate; the loader needs none."""
    if not path.is_dir():
        yield Finding("/dev/shm", "warning", "not there: several GPUs of one pod need it")
        return
    size = shutil.disk_usage(path).total / GIB
    fine = size >= NONE_GIB
    advice = (
        ""
        if fine
        else "; enough for one GPU, several need more (docker run --shm-size, or an emptyDir of medium Memory)"
    )
    shown = f"{size:.1f} GiB" if size >= 1 else f"{size * 1024:.0f} MiB"
    yield Finding("/dev/shm", "ok" if fine else "warning", shown + advice)


def work_folders(store_dir: Path | None) -> dict[str, Path]:
    """The folders that a run here writes to.

    Args:
        store_dir: folder of the object store; None for a bucket.

    Raises:
        InputError: no folder for temporary files is writable.
    """
    try:
        work = Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise InputError(
            "no folder for temporary files is writable; mount one (docker run --tmpfs /tmp, an emptyDir at /tmp), or set TMPDIR"
        ) from None
    return {
        **({"room for the store": store_dir} if store_dir else {}),
        "room for work": work,
        "room for results": Path.cwd(),
    }


def _driver() -> str:
    """Version of the NVIDIA driver; empty if there is none."""
    try:
        words = DRIVER.read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "of unknown version")


def check_images(record: Path) -> Iterator[Finding]:
    """Looks for each image of a record in its registry and in this machine's engine."""
    found = read_images(record)
    yield Finding("images", "ok", f"{record}: version {found.version}, commit {found.commit}")
    for target, image in sorted(found.images.items()):
        yield _in_registry(f"{target} image, registry", image.reference)
        yield _in_engine(f"{target} image, engine", image.reference)


def _in_engine(subject: str, reference: str) -> Finding:
    needed = "only `run --runner docker` needs it"
    try:
        client = connect(ENGINE_SECONDS)
    except InputError as error:
        return Finding(subject, "warning", f"not checked, {needed}: {error}")
    from docker.errors import DockerException, ImageNotFound

    try:
        with contextlib.closing(client):
            client.images.get(reference)
    except ImageNotFound:
        return Finding(subject, "warning", f"not pulled, {needed}: docker pull {reference}")
    except (DockerException, OSError) as error:
        return Finding(subject, "warning", f"not checked, {needed}: the container engine failed ({one_line(error)})")
    return Finding(subject, "ok", "is there")


def _in_registry(subject: str, reference: str) -> Finding:
    registry, name, digest = split_reference(reference)
    try:
        status = request_status(reference)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        return Finding(subject, "warning", f"{registry} cannot be reached from here ({why}); the cluster must reach it")
    if status == 200:
        return Finding(subject, "ok", f"{registry}/{name} has {digest[:19]}...")
    if status in (401, 403):
        return Finding(subject, "warning", f"not checked: {registry} requires a login for {name} ({status})")
    if status == 404:
        return Finding(subject, "failed", missing_image(reference))
    return Finding(subject, "warning", f"{registry} answers {status} to a request for {name}")


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
    if endpoint.multi_user:
        yield Finding("namespace", "ok", f"{config.namespace}: its experiments can be listed")
    else:
        yield Finding(
            "namespace",
            "warning",
            f"this installation has none: pods start in its own, where service account {config.service_account} and "
            f"{config.credentials} must be",
        )
