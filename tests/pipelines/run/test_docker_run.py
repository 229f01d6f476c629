"""Runs and predictions whose tasks are containers: results as by processes, killed, cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.core.registry.publishing import publish
from components.core.storage.digests import digest_file
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.container_engine import engine_or_skip, images_or_skip
from tests.pipelines.run.test_local import PREDICTIONS, Run, events, prepare, results
from tests.pipelines.tiny_run import Cellsignal, error_line, processes_naming

pytestmark = pytest.mark.docker
EPOCHS = 15
LONGER = ("--set", f"pretrain.epochs={EPOCHS}", "--set", "compute.checkpoint_seconds=0")
DOCKER = ("--runner", "docker")


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    return images_or_skip()


def containers(out: Path) -> list[Any]:
    from pipelines.run.containers import WORK_LABEL

    label = f"{WORK_LABEL}={out.resolve() / 'run'}"
    return engine_or_skip().containers.list(all=True, ignore_removed=True, filters={"label": label})


def wait_for(happened, process: subprocess.Popen[str], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def epochs(out: Path, fold: int) -> list[int]:
    return [e["epoch"] for e in events(out) if e["event"] == "epoch" and (e["step"], e["fold"]) == ("pretrain", fold)]


def weights(out: Path) -> list[str]:
    """Digests of the pretrained weights, fold by fold."""
    return [digest_file(path) for path in sorted((out / "run" / "kfp").rglob("pretrain/weights/*.safetensors"))]


def fold_of(container: Any) -> int | None:
    command = container.attrs["Config"]["Cmd"]
    parameters = json.loads(command[command.index("--executor_input") + 1])["inputs"]["parameterValues"]
    return parameters.get("fold")


@dataclass(frozen=True)
class Killed:
    """A run in containers whose first pretraining was killed after some epochs, the same again, and one by processes."""

    run: Run
    code: int
    message: str
    before: list[int]
    left: list[Any]
    reference: Run
    image: dict[str, str]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, images: dict[str, str]) -> Killed:
    folder = tmp_path_factory.mktemp("docker")
    reference = prepare(folder / "processes", integers=False)
    done = reference.cellsignal(*reference.arguments, *LONGER)
    assert (done.returncode, done.stderr) == (0, "")

    run = prepare(folder / "in: containers", integers=False)  # a volume could not have this name
    process = run.cellsignal.start(*run.arguments, *LONGER, *DOCKER)
    wait_for(lambda: len(epochs(run.out, 0)) >= 3, process)
    (target,) = [one for one in containers(run.out) if fold_of(one) == 0]
    target.kill("SIGKILL")
    _, errors = process.communicate(timeout=120)
    before, left = epochs(run.out, 0), containers(run.out)
    again = run.cellsignal(*run.arguments, *LONGER, *DOCKER)
    assert (again.returncode, again.stderr) == (0, "")
    return Killed(run, process.returncode, errors, before, left, reference, images)


def test_a_killed_container_ends_the_run_with_its_name(killed: Killed):
    assert killed.code == 3
    assert killed.message.startswith("error: pretrain fold 0 tiny was killed, perhaps for lack of memory")
    assert len(killed.message.splitlines()) == 1
    assert killed.left == []


def test_resumes_from_its_checkpoint_to_the_same_weights(killed: Killed):
    assert 3 <= len(killed.before) < EPOCHS
    resumed = epochs(killed.run.out, 0)
    assert resumed[-1] == EPOCHS
    assert resumed[0] > 1, "it did not start at the beginning"
    assert len(weights(killed.run.out)) == 2
    assert weights(killed.run.out) == weights(killed.reference.out)


def test_predictions_of_a_training_are_those_of_processes(killed: Killed):
    assert results(killed.run.out) == results(killed.reference.out)
    for name in PREDICTIONS:
        assert (killed.run.out / name).read_bytes() == (killed.reference.out / name).read_bytes(), name


def test_outputs_are_the_callers_and_nothing_is_left(killed: Killed):
    run = killed.run
    assert {path.stat().st_uid for path in run.cellsignal.folder.rglob("*")} == {os.getuid()}
    assert containers(run.out) == []
    assert processes_naming(run.cellsignal.folder) == []
    assert not (run.out / "run" / "tmp").exists()


def test_the_lineage_names_the_images(killed: Killed):
    assert json.loads((killed.run.out / "lineage.json").read_text())["image_digests"] == killed.image


def test_no_secret_of_the_store_is_in_an_argument_or_a_file_of_the_run(tmp_path: Path, images):
    """The secret is only in the request to the engine."""
    from tests.seaweedfs import s3_server

    run = prepare(tmp_path / "run", integers=False)
    with s3_server(tmp_path / "server") as server:
        environment = server.environment()
        arguments = ["s3://cellsignal" if a == run.store else a for a in run.arguments]
        process = run.cellsignal.start(*arguments, *DOCKER, environment=environment)
        one = wait_for(lambda: containers(run.out), process)[0]
        shown = json.dumps([one.attrs["Config"]["Cmd"], one.attrs["Config"]["Labels"], one.attrs["Args"]])
        assert one.attrs["HostConfig"]["ReadonlyRootfs"] is True
        assert one.attrs["HostConfig"]["CapDrop"] == ["ALL"]
        assert one.attrs["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    # Cancelled, and its containers with it.
    assert process.returncode == 3
    assert errors == "error: cancelled; run the same command again to resume from the finished steps\n"
    assert containers(run.out) == []
    assert processes_naming(run.cellsignal.folder) == []
    written = shown + out + "".join(p.read_text(errors="replace") for p in run.out.rglob("*") if p.is_file())
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert environment[name] not in written


def test_kill_9_of_the_command_leaves_no_container(tmp_path: Path, images):
    run = prepare(tmp_path / "run", integers=False)
    process = run.cellsignal.start(*run.arguments, *DOCKER)
    wait_for(lambda: containers(run.out), process)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while containers(run.out) or processes_naming(run.cellsignal.folder):
        assert time.monotonic() < deadline, processes_naming(run.cellsignal.folder)
        time.sleep(0.2)


def test_a_step_that_finds_bad_input_in_its_container_is_one_line(tmp_path: Path, images):
    run = prepare(tmp_path / "run", integers=False)
    next(run.screen.rglob("*.png")).write_bytes(b"no image")
    done = run.cellsignal(*run.arguments, *DOCKER)
    assert done.returncode == 2
    assert ".png" in error_line(done)
    assert containers(run.out) == []


def test_an_image_of_other_sources_is_refused(tmp_path: Path, images, monkeypatch: pytest.MonkeyPatch):
    from components.core.errors import InputError
    from pipelines.run.containers import check_images

    monkeypatch.setattr("pipelines.images.engine.sources_digest", lambda: "0" * 16)
    with pytest.raises(
        InputError, match=r"^cellsignal-cpu:\S+: contains other sources than .*; run `cellsignal images build`$"
    ):
        check_images()
    monkeypatch.setattr("pipelines.run.containers.CURRENT", {"cpu": "cellsignal-cpu:none"})
    with pytest.raises(InputError, match=r"^cellsignal-cpu:none: there is no such image on this machine; run `cellsig"):
        check_images()


def test_predictions_of_new_plates_are_those_of_processes(
    cellsignal: Cellsignal, tmp_path: Path, images: dict[str, str]
) -> None:
    (tmp_path / "lab").mkdir()
    run = FinishedRun(tmp_path, ObjectStore(tmp_path / "lab"))
    address = run.store.uri(f"models/{publish(run.store, KEY).model.fingerprint}")
    usual = ("predict", "--screen", tmp_path / "screen", "--model", address, "--experiments", "HUVEC-03,HUVEC-04")
    plain = cellsignal(*usual, "--out", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr

    before = {key: run.store.get(key) for key in run.store.list("")}
    (tmp_path / "other").mkdir()
    out = tmp_path / "out"
    elsewhere = ("--set", f"store.bucket=file://{tmp_path / 'other'}", "--out", out, "--runner", "docker")
    done = cellsignal(*usual, *elsewhere)
    assert done.returncode == 0, done.stderr + (out / "run" / "log.txt").read_text()
    for name in ("predictions.csv", "qc.csv", "metrics.json"):
        assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["image_digests"] == images
    assert {path.stat().st_uid for path in out.rglob("*")} == {os.getuid()}
    assert containers(out) == []
    recorded = ObjectStore(tmp_path / "other").list(f"runs/{lineage['run']}/results/")
    assert sorted(key.rpartition("/")[2] for key in recorded) == results(out)
    assert {key: run.store.get(key) for key in run.store.list("")} == before, "the model's store is read alone"

    refused = cellsignal(*usual, *elsewhere, "--set", "prior.enabled=false")
    assert refused.returncode == 2
    assert "another config.prior.enabled" in error_line(refused)
