"""init_from on the command line: a run's folder becomes its address, and what cannot be ends with one line and code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RunRecord
from components.core.storage.runs import write_run
from components.normalize.step import run as normalize
from pipelines.run.folder import LocalRun, opened_folder, with_address
from tests.pipelines.tiny_run import Cellsignal
from tests.seaweedfs import S3Server
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


def leave_run(tmp_path: Path, *changes: str) -> Path:
    folder = tmp_path / "runs" / "demo"
    run = LocalRun(config=RunConfig.load("demo", list(changes)), screen=None, truth=None, lineage={"run": "demo-1a2b"})
    with opened_folder(folder, run):
        return folder


def address(given: str, *changes: str) -> str | None:
    return with_address(RunConfig.load("demo", [f"init_from={given}", *changes])).init_from


def test_a_folder_becomes_the_address_of_its_run_in_either_store(tmp_path: Path) -> None:
    assert address(str(leave_run(tmp_path / "bucket", "store.bucket=mine", "store.prefix=team/a"))) == (
        "s3://mine/team/a/runs/demo-1a2b"
    )
    lab = (tmp_path / "lab data").as_uri()
    for prefix, expected in (("", f"{lab}/runs/demo-1a2b"), ("team/a", f"{lab}/team/a/runs/demo-1a2b")):
        run = leave_run(tmp_path / f"folder {prefix}", f"store.bucket={lab}", f"store.prefix='{prefix}'")
        assert address(str(run)) == address(str(run), f"store.bucket={lab}") == expected


def test_keys_and_addresses_stay() -> None:
    for given in ("demo-1a2b", "s3://bucket/runs/demo-1a2b", "file:///lab/runs/demo-1a2b"):
        assert address(given) == given
    assert with_address(RunConfig.load("demo")).init_from is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for given, message in ((tmp_path, "not the folder of a run"), (tmp_path / "none", "neither a key nor a folder")):
        with pytest.raises(InputError, match=rf"^init_from: {given}: {message}"):
            address(str(given))


def test_a_run_that_cannot_start_is_refused_before_anything_is_made(
    cellsignal: Cellsignal, config_file: Path, either_store: ObjectStore, s3_server: S3Server, tmp_path: Path
) -> None:
    """No --screen: it would be simulated first, which takes longer than to look at the other run."""
    store, config = either_store, RunConfig.load(str(config_file))
    here, environment = f"store.bucket={store.uri('')}", {}
    if store.bucket:
        environment = s3_server.environment()
    TinyScreen(tmp_path / "other")
    paths = [tmp_path / name for name in ("s.json", "h.json", "l.csv")]
    normalize(CONFIG, tmp_path / "other", MemoryStore(), *paths)
    record = RunRecord(key="old-1", config=json.loads(config.model_dump_json()), lineage={})
    write_run(store, record, *(path.read_bytes() for path in paths), plates=[])

    def refused(*changes: str) -> str:
        given = [part for change in (here, *changes) for part in ("--set", change)]
        return cellsignal.refused("run", "--config", config_file, "--out", "out", *given, environment=environment)

    assert (
        f"init_from: run old-2: no such run below {store.uri('')} (`cellsignal runs` lists the runs there)"
        in refused("init_from=old-2")
    )
    assert "has no pretrained weights of fold 0" in refused(f"init_from={store.uri('runs/old-1')}")
    nowhere = (tmp_path / "nowhere").as_uri()
    assert f"run old-1: no such run below {nowhere} (`cellsignal runs` lists the runs there)" in refused(
        f"init_from={nowhere}/runs/old-1"
    )
    assert "file:///FOLDER/runs/KEY" in refused(f"init_from={nowhere}")
    old = "init_from=old-1"
    assert "init_from: run old-1 has no pretrained weights of fold 0 and tiny (it has none)" in refused(old)
    assert "backbone tiny has stem 8, but 4 in run old-1" in refused(old, "backbones.0.stem=8")
    assert "init_from sets the initial weights of every backbone" in refused(old, "backbones.0.weights=w.pt")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "nowhere").exists()
