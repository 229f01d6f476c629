"""An unusable engine is one line that says what to do; the sockets are real."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.errors import InputError
from pipelines.images.engine import connect
from tests.pipelines.tiny_run import ROOT, Cellsignal


@pytest.mark.parametrize("command", [("images", "build"), ("images", "push", "--registry", "localhost:1")])
def test_an_engine_that_does_not_run(cellsignal: Cellsignal, tmp_path: Path, command):
    address = f"unix://{tmp_path}/none.sock"
    line = cellsignal.refused(*command, environment={"DOCKER_HOST": address})
    assert f"container engine at {address}: no answer" in line
    assert "start it (sudo systemctl start docker)" in line


def test_a_run_connects_to_the_engine_before_it_writes_anything(
    cellsignal: Cellsignal, config_file, tiny_screen, tmp_path
):
    line = cellsignal.refused(
        "run", "--config", config_file, "--screen", tiny_screen.root, "--out", "out", "--store", "store", "--runner", "docker",
        environment={"DOCKER_HOST": "tcp://127.0.0.1:1"},
    )  # fmt: skip
    assert "container engine at tcp://127.0.0.1:1: no answer" in line
    assert not (tmp_path / "out").exists()


def test_an_engine_without_access_for_this_user(tmp_path: Path):
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
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "DOCKER_HOST": f"unix://{path}", "PYTHONPATH": str(ROOT), "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert "this user may not use it; join the group docker" in done.stdout


@pytest.mark.parametrize("address", ["nonsense://x", "tcp://[::1"])
def test_an_invalid_address(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(InputError, match=re.escape(f"container engine at {address}: no answer")):
        connect()


def test_rejects_a_registry_with_a_scheme(cellsignal: Cellsignal):
    assert "write it as HOST/PATH" in cellsignal.refused("images", "push", "--registry", "https://registry.example/lab")


def test_rejects_a_missing_file(cellsignal: Cellsignal):
    line = cellsignal.refused("images", "build", "--pip-conf", "missing.conf")
    assert line == "error: missing.conf: cannot be read (No such file or directory)"
