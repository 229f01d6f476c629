"""`predict --runner docker`: each task a container, the model read from another store than the one that plates go to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from components.core.registry.publishing import publish
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.container_engine import images_or_skip
from tests.pipelines.run.test_docker_run import containers
from tests.pipelines.run.test_predict import RESULTS
from tests.pipelines.tiny_run import Cellsignal, error_line

pytestmark = pytest.mark.docker
NEW = "HUVEC-03,HUVEC-04"


def test_new_plates_are_named_as_by_processes_and_nothing_is_left(cellsignal: Cellsignal, tmp_path: Path) -> None:
    images = images_or_skip()
    (tmp_path / "lab").mkdir()
    run = FinishedRun(tmp_path, ObjectStore(tmp_path / "lab"))
    address = run.store.uri(f"models/{publish(run.store, KEY).model.fingerprint}")
    usual = ("predict", "--screen", tmp_path / "screen", "--model", address, "--experiments", NEW)
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
    assert {key.rpartition("/")[2] for key in recorded} == set(RESULTS)
    assert {key: run.store.get(key) for key in run.store.list("")} == before, "the model's store is read alone"

    refused = cellsignal(*usual, *elsewhere, "--set", "prior.enabled=false")
    assert refused.returncode == 2
    assert "another config.prior.enabled" in error_line(refused)
