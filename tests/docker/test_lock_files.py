"""Lock files, the Dockerfile and the folder's name; needs no container engine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("build", "cpu", "gpu")


def requirements(lock: str) -> dict[str, list[str]]:
    """Lines below each `name==version` of a lock file."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "docker" / f"{lock}.lock").read_text().splitlines():
        if not line.startswith((" ", "#")):
            name = line.removesuffix(" \\")
            found[name] = []
        elif not line.startswith("#"):
            found[name].append(line.strip().removesuffix(" \\"))
    return found


def names(lock: str) -> set[str]:
    return {line.partition("==")[0] for line in requirements(lock)}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_version_is_pinned_with_hashes_and_no_address(lock: str):
    for name, lines in requirements(lock).items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", name)
        assert lines
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    text = (ROOT / "docker" / f"{lock}.lock").read_text()
    assert "://" not in text
    assert "--index" not in text


def test_torch_and_its_dependencies_are_in_the_gpu_lock_only():
    assert not names("cpu") & names("gpu")
    assert {"torch", "torchvision", "timm", "safetensors"} <= names("gpu")
    assert not [name for name in names("cpu") if name.startswith(("torch", "nvidia", "triton", "cuda"))]


def test_versions_are_those_that_the_project_is_tested_with():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {plain(name): version for name, version in (line.split("==") for line in lines)}
    for lock in ("cpu", "gpu"):
        for name, version in (line.split("==") for line in requirements(lock)):
            assert tested.get(plain(name), version) == version, name


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {plain(re.split(r"[=<>\[ ]", each)[0]) for each in project["dependencies"]}
    assert needed <= names("cpu")
    training = {plain(re.split(r"[=<>\[ ]", each)[0]) for each in project["optional-dependencies"]["train"]}
    assert training <= names("gpu")


def test_the_folder_does_not_hide_the_docker_package():
    assert not list((ROOT / "docker").rglob("__init__.py"))
    program = "import sys; sys.path.insert(0, '.'); import docker; print(docker.DockerClient)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    assert "docker.client.DockerClient" in done.stdout


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
