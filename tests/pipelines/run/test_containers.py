"""What a run's containers see of this machine, and one task in a container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.config import RunConfig, StoreConfig
from components.core.errors import InputError
from components.core.progress import EVENTS_VARIABLE
from pipelines.run.containers import check_credentials, container_environment, mounts_of, run_task
from pipelines.run.folder import LocalRun, RunFolder
from tests.container_engine import engine_or_skip, images_or_skip

LIMITS = ["cluster.steps.pretrain.memory_gib=1", "cluster.steps.pretrain.shm_gib=0.25", "cluster.steps.pretrain.gpus=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere"))  # no default store, which would be mounted
    for name in ("run/simulated/screen", "screen", "store", "other store/runs/KEY", "cache"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("w.pt", "fused.csv", "truth.csv", "ca.pem", "run/simulated/truth.csv"):
        (tmp_path / name).write_text("")
    return tmp_path


def mounted(
    config: RunConfig, folder: Path, screen: str | None, truth: str = "", **environment: str
) -> dict[str, bool]:
    run = LocalRun(config=config, screen=screen, truth=Path(truth) if truth else None, lineage={})
    found = mounts_of(run, RunFolder(folder), environment)
    return {path.removeprefix(f"{folder}/"): write for path, write in found.items()}


def test_all_files_of_a_configuration_are_mounted_and_only_outputs_writable(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    changes = ["backbones.0.weights=w.pt", f"mean_teacher.fused_labels=file://{folder}/fused.csv"]
    changes += [f"store.bucket=file://{folder}/store", f"loader.node_cache={folder}/cache"]
    config = RunConfig.load("demo", changes)
    found = mounted(config, folder, f"{folder}/screen", f"{folder}/truth.csv", AWS_CA_BUNDLE=f"{folder}/ca.pem")
    assert found == {
        "ca.pem": False, "fused.csv": False, "screen": False, "truth.csv": False, "w.pt": False,
        "cache": True, "run": True, "store": True,
    }  # fmt: skip


def test_nested_folders_are_mounted_once_and_addresses_in_object_storage_not_at_all(folder: Path):
    run = {"run": True}
    assert mounted(RunConfig.load("demo"), folder, None) == run, "the simulated screen and its truth are in it"
    config = RunConfig.load("demo", ["backbones.0.weights=s3://bucket/w.pt", "init_from=null"])
    assert mounted(config, folder, "s3://bucket/screen") == run
    earlier = RunConfig.load("demo", [f"init_from=file://{folder}/other%20store/runs/KEY"])
    assert mounted(earlier, folder, f"file://{folder}/screen") == {**run, "other store": False, "screen": False}
    (folder / "screen" / "store").mkdir()
    inside = RunConfig.load("demo", [f"store.bucket=file://{folder}/screen/store"])
    assert mounted(inside, folder, f"{folder}/screen") == {**run, "screen": False, "screen/store": True}


def test_a_container_gets_only_variables_that_a_step_needs(monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    own = {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "r",
        "CELLSIGNAL_EVENTS": "/e", "OMP_NUM_THREADS": "1", "NO_PROXY": "x", "https_proxy": "y", "PYTHONSAFEPATH": "1",
    }  # fmt: skip
    shell = dict.fromkeys(("PATH", "HOME", "PYTHONPATH", "GITHUB_TOKEN", "LD_PRELOAD", "AWS_PROFILE"), "x")
    found = container_environment({**own, **shell, "SSL_CERT_FILE": "ca.pem"})
    assert found == {**own, "SSL_CERT_FILE": f"{tmp_path}/ca.pem"}


def test_credentials_in_files_are_refused():
    bucket = StoreConfig(bucket="s3://lab/team")
    role = {"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
    for variables in ({"AWS_PROFILE": "p"}, {"AWS_SHARED_CREDENTIALS_FILE": "/c"}, role):
        check_credentials(StoreConfig(), variables)  # a folder needs none
        with pytest.raises(InputError, match="containers see no files of credentials; set AWS_ACCESS_KEY_ID"):
            check_credentials(bucket, variables)
    for variables in ({}, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_PROFILE": "p"}):
        check_credentials(bucket, variables)
    check_credentials(bucket, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"})


@pytest.fixture(scope="module")
def image() -> str:
    return images_or_skip()["cpu"]


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    return tmp_path / "events.jsonl"


def task(image: str, folder: Path, *program: str, limits: list[str] = LIMITS, left: tuple[str, ...] = ()) -> int:
    """Runs a program under the name of pretrain, fold 1; `left` are outputs that it is to leave."""
    artifacts = {
        name: {"artifacts": [{"uri": str(folder / name), "type": {"schemaTitle": f"system.{kind}"}}]}
        for name, kind in (("weights", "Model"), ("metrics", "Metrics"))
    }
    outputs = {"outputFile": str(folder / "executor_output.json"), "artifacts": artifacts}
    inputs = {"inputs": {"parameterValues": {"fold": 1.0, "backbone": "a", "config": "{}"}}, "outputs": outputs}
    for name in left:
        (folder / name).write_text("")
    command = [*program, "--executor_input", json.dumps(inputs), "--function_to_execute", "pretrain"]
    return run_task(engine_or_skip(), image, command, RunConfig.load("demo", limits), network_mode="none")


def failures(events: Path) -> list[dict[str, Any]]:
    lines = events.read_text().splitlines() if events.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == "failed"]


@pytest.mark.docker
def test_a_task_that_fails_at_once_never_counts_as_done(image: str, tmp_path: Path, events: Path):
    everything = ("executor_output.json", "weights")
    assert {task(image, tmp_path, "sh", "-c", "exit 7", left=everything) for _ in range(15)} == {7}
    assert task(image, tmp_path, "sh", "-c", "exit 0", left=everything) == 0
    assert failures(events) == [], "a program reports its own failure"


@pytest.mark.docker
@pytest.mark.parametrize(("left", "missing"), [((), "record of outputs"), (("executor_output.json",), "weights")])
def test_a_task_without_an_output_has_failed(image: str, tmp_path: Path, events: Path, left, missing: str):
    assert task(image, tmp_path, "true", left=left) == 1
    (failure,) = failures(events)
    assert failure["message"] == f"its container ended well but left no {missing}"
    assert (failure["step"], failure["fold"], failure["backbone"]) == ("pretrain", 1, "a")


@pytest.mark.docker
def test_a_task_beyond_its_memory_names_the_field_to_raise(image: str, tmp_path: Path, events: Path):
    small = [*LIMITS, "cluster.steps.pretrain.memory_gib=0.25", "cluster.steps.pretrain.shm_gib=0"]
    assert task(image, tmp_path, "python3", "-c", "print(len(b'1' * 2**30))", limits=small) == 137
    (failure,) = failures(events)
    assert "limit of 0.25 GiB" in failure["message"]
    assert "cluster.steps.pretrain.memory_gib" in failure["message"]


@pytest.mark.docker
def test_shared_memory_has_the_configured_size(image: str, tmp_path: Path, capsys):
    assert task(image, tmp_path, "sh", "-c", "df -m /dev/shm | tail -1; exit 3") == 3
    assert capsys.readouterr().out.split()[1] == "256"


@pytest.mark.docker
def test_an_image_that_is_gone(tmp_path: Path, events: Path, image: str):
    assert task("cellsignal-cpu:none", tmp_path, "true") == 1
    (failure,) = failures(events)
    assert failure["message"] == "cellsignal-cpu:none is gone from this machine; run `cellsignal images build`"


@pytest.mark.docker
def test_a_container_is_removed_when_it_has_ended(image: str, tmp_path: Path):
    before = {one.id for one in engine_or_skip().containers.list(all=True)}
    task(image, tmp_path, "sh", "-c", "exit 7")
    assert {one.id for one in engine_or_skip().containers.list(all=True)} <= before
