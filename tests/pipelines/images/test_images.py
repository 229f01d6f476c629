"""Build context, engine and registry of the images, without building one; sockets and registry are real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.core.errors import InputError
from pipelines.cli import app
from pipelines.images.build_and_push import pack_context
from pipelines.images.engine import connect
from pipelines.images.record import DOCKER_HUB, check_pushed, split_reference
from tests.pipelines.images.registry_server import DIGEST
from tests.pipelines.tiny_run import ROOT


def rejected(*arguments: str | Path) -> str:
    with pytest.raises(InputError) as error:
        CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    return str(error.value)


def files(root: Path, extra: dict[str, str]) -> dict[str, bytes]:
    with pack_context(root, extra) as packed, tarfile.open(fileobj=packed) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}  # type: ignore[union-attr]


def test_sends_only_what_the_images_contain() -> None:
    sent = files(ROOT, {"docker/pip.conf": "[global]\n"})
    assert {name.split("/")[0] for name in sent} == {
        "components", "pipelines", "docker", "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip
    assert {name for name in sent if name.startswith("docker/")} == {
        "docker/Dockerfile", "docker/build.lock", "docker/cpu.lock", "docker/gpu.lock", "docker/pip.conf",
    }  # fmt: skip
    assert sent["docker/pip.conf"] == b"[global]\n"
    sources = {path for part in ("components", "pipelines") for path in (ROOT / part).rglob("*.*") if path.is_file()}
    own = {path.relative_to(ROOT).as_posix() for path in sources if "__pycache__" not in path.parts}
    assert {name for name in sent if name.startswith(("components/", "pipelines/"))} == own


def test_an_option_replaces_the_file_of_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / ".dockerignore").write_text("# all but these\n*\n!docker/*.conf\n")
    (tmp_path / "docker" / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "docker" / "pip.conf").write_text("own")
    (tmp_path / "secret").write_text("secret")
    assert files(tmp_path, {}) == {"docker/Dockerfile": b"FROM scratch\n", "docker/pip.conf": b"own"}
    assert files(tmp_path, {"docker/pip.conf": "option"})["docker/pip.conf"] == b"option"


@pytest.mark.parametrize("command", [("images", "build"), ("images", "push", "--registry", "localhost:1")])
def test_rejects_an_engine_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]):
    monkeypatch.chdir(tmp_path)
    address = f"unix://{tmp_path}/none.sock"
    monkeypatch.setenv("DOCKER_HOST", address)
    line = rejected(*command)
    assert f"container engine at {address}: no answer" in line
    monkeypatch.setenv("DOCKER_HOST", "tcp://[::1")
    with pytest.raises(InputError, match=r"container engine at tcp://\[::1: no answer"):
        connect()
    assert "start it (sudo systemctl start docker)" in line


def test_rejects_an_engine_without_access_for_this_user(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        # Root may use every socket, so the process becomes a user without access once everything is imported.
        program = (
            "import os, sys, docker, docker.tls, requests.adapters, idna\n"
            "from pipelines.images.engine import connect\n"
            "os.geteuid() or os.setuid(65534)\n"
            "try:\n    connect()\nexcept ValueError as error:\n    print(error)"
        )
        environment = {**os.environ, "DOCKER_HOST": f"unix://{path}", "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"}
        command, how = [sys.executable, "-c", program], {"capture_output": True, "text": True, "check": True}
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, **how)
    assert "this user may not use it; join the group docker" in done.stdout


def test_rejects_bad_options() -> None:
    assert "write it as HOST/PATH" in rejected("images", "push", "--registry", "https://registry.example/lab")
    assert rejected("images", "build", "--pip-conf", "missing.conf").startswith("missing.conf: cannot be read (No such")
    assert "--target tpu: give cpu, gpu or all" in rejected("images", "build", "--target", "tpu")


def test_rejects_only_an_image_that_its_registry_lacks(registry: tuple[str, dict[str, int]]) -> None:
    host, statuses = registry
    for status in (200, 401, 403, 500):
        statuses["lab/cpu"] = status
        check_pushed(f"{host}/lab/cpu@{DIGEST}")
    statuses["lab/cpu"] = 404
    message = rf"^{host}/lab/cpu has no {DIGEST}; push again with `cellsignal images push`$"
    with pytest.raises(InputError, match=message):
        check_pushed(f"{host}/lab/cpu@{DIGEST}")
    with socket.socket() as free:  # a registry that cannot be reached from here may serve the cluster
        free.bind(("127.0.0.1", 0))
        check_pushed(f"127.0.0.1:{free.getsockname()[1]}/cpu@{DIGEST}")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        (f"ghcr.io/lab/cellsignal-cpu@{DIGEST}", ("ghcr.io", "lab/cellsignal-cpu", DIGEST)),
        (f"localhost:5000/cpu@{DIGEST}", ("localhost:5000", "cpu", DIGEST)),
        (f"lab/cpu@{DIGEST}", (DOCKER_HUB, "lab/cpu", DIGEST)),
        (f"cpu@{DIGEST}", (DOCKER_HUB, "library/cpu", DIGEST)),
    ],
)
def test_references_are_read_as_engines_do(reference: str, parts: tuple[str, str, str]) -> None:
    assert split_reference(reference) == parts
