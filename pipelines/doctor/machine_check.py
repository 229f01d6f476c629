"""Versions, GPU, room and shared memory of this machine or pod. torch is asked in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from components.core.errors import InputError
from pipelines.doctor.finding import Finding, Level
from pipelines.images.code_version import code_version

GIB = 1 << 30
LITTLE_GIB, NONE_GIB = 20, 1
"""Free space that is worth a warning, and that no run does with."""
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


def check_versions() -> Iterator[Finding]:
    """Interpreter, this code, kfp and the libraries of the object store."""
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
    """Torch and the GPUs that it sees; the driver alone where there is no torch."""
    driver = _driver()
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("torch", "failed", f"did not answer within {TORCH_SECONDS} s; look at the GPU with nvidia-smi")
        return
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["ended without a word"])[-1]
        missing = "No module named 'torch'" in last
        said = "not installed: training steps need it, others do not (pip install 'cellsignal[train]')"
        yield Finding("torch", "warning" if missing else "failed", said if missing else last)
        if driver:
            yield Finding("GPU", "warning", f"driver {driver} is there, but no torch to use it")
        return
    found = json.loads(asked.stdout.strip().splitlines()[-1])
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
        yield Finding("GPU", "warning", "none: training runs on the CPU, which suits the demo only")


def check_room(folders: dict[str, Path]) -> Iterator[Finding]:
    """Free space where runs write.

    Args:
        folders: by what is kept there; one that is not there yet counts as the nearest above it.
    """
    for what, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(there).free / GIB
        level: Level = "failed" if free < NONE_GIB else "warning" if free < LITTLE_GIB else "ok"
        advice = {"ok": "", "warning": "; a whole screen needs more", "failed": "; make room"}[level]
        said = f"{free:.0f} GiB free at {folder}{advice}" if free >= 10 else f"{free:.1f} GiB free at {folder}{advice}"
        if not os.access(there, os.W_OK):
            level, said = "warning", f"{folder} cannot be written by this user"
        yield Finding(what, level, said)


def check_shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Size of /dev/shm: the loader needs none, several GPUs of a pod talk through it."""
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
        InputError: there is no place for temporary files.
    """
    try:
        work = Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise InputError(
            "no folder for temporary files can be written; mount one (docker run --tmpfs /tmp, an emptyDir at /tmp), or name "
            "one by TMPDIR"
        ) from None
    return {
        **({"room for the store": store_dir} if store_dir else {}),
        "room for work": work,
        "room for results": Path.cwd(),
    }


def _driver() -> str:
    """Version of the NVIDIA driver; empty where there is none."""
    try:
        words = DRIVER.read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "of an unknown version")
