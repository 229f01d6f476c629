"""One task as a container: its code is known however fast it ends, and so is why it was ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.progress import EVENTS_VARIABLE
from tests.container_engine import engine_or_skip, images_or_skip

pytestmark = pytest.mark.docker
LIMITS = {"pretrain": {"memory_gib": 1.0, "shm_gib": 0.25, "gpus": False}}


@pytest.fixture(scope="module")
def image() -> str:
    return images_or_skip()["cpu"]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    return tmp_path / "events.jsonl"


def task(image: str, folder: Path, *program: str, limits: Any = None, left: tuple[str, ...] = ()) -> int:
    """Runs a program under the name of pretrain, fold 1; `left` are outputs that it is to leave."""
    from pipelines.run.containers import run_task

    artifacts = {
        name: {"artifacts": [{"uri": str(folder / name), "type": {"schemaTitle": f"system.{kind}"}}]}
        for name, kind in (("weights", "Model"), ("metrics", "Metrics"))
    }
    outputs = {"outputFile": str(folder / "executor_output.json"), "artifacts": artifacts}
    given = {"inputs": {"parameterValues": {"fold": 1.0, "backbone": "a", "config": "{}"}}, "outputs": outputs}
    for name in left:
        (folder / name).write_text("")
    command = [*program, "--executor_input", json.dumps(given), "--function_to_execute", "pretrain"]
    return run_task(engine_or_skip(), image, command, limits or LIMITS, network_mode="none")


def failures(told: Path) -> list[dict[str, Any]]:
    lines = told.read_text().splitlines() if told.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == "failed"]


def test_a_task_that_fails_at_once_never_counts_as_done(image: str, tmp_path: Path, told: Path):
    everything = ("executor_output.json", "weights")
    assert {task(image, tmp_path, "sh", "-c", "exit 7", left=everything) for _ in range(15)} == {7}
    assert task(image, tmp_path, "sh", "-c", "exit 0", left=everything) == 0
    assert failures(told) == [], "a program says itself why it failed"


@pytest.mark.parametrize(("left", "missing"), [((), "record of outputs"), (("executor_output.json",), "weights")])
def test_a_task_that_left_an_output_out_has_failed(image: str, tmp_path: Path, told: Path, left, missing: str):
    assert task(image, tmp_path, "true", left=left) == 1
    (failure,) = failures(told)
    assert failure["message"] == f"its container ended well but left no {missing}"
    assert (failure["step"], failure["fold"], failure["backbone"]) == ("pretrain", 1, "a")


def test_memory_beyond_the_limit_is_told_with_the_field_to_raise(image: str, tmp_path: Path, told: Path):
    small = {"pretrain": {"memory_gib": 0.0625, "shm_gib": 0.0, "gpus": False}}
    assert task(image, tmp_path, "python3", "-c", "print(len(b'1' * 2**28))", limits=small) == 137
    (failure,) = failures(told)
    assert "limit of 0.0625 GiB" in failure["message"]
    assert "cluster.steps.pretrain.memory_gib" in failure["message"]


def test_shared_memory_has_the_configured_size(image: str, tmp_path: Path, capsys):
    assert task(image, tmp_path, "sh", "-c", "df -m /dev/shm | tail -1; exit 3") == 3
    assert capsys.readouterr().out.split()[1] == "256"


def test_an_image_that_is_gone(tmp_path: Path, told: Path, image: str):
    assert task("cellsignal-cpu:none", tmp_path, "true") == 1
    (failure,) = failures(told)
    assert failure["message"] == "cellsignal-cpu:none is gone from this machine; run `cellsignal images build`"


def test_a_container_is_removed_when_it_has_ended(image: str, tmp_path: Path):
    before = {one.id for one in engine_or_skip().containers.list(all=True)}
    task(image, tmp_path, "sh", "-c", "exit 7")
    assert {one.id for one in engine_or_skip().containers.list(all=True)} <= before
