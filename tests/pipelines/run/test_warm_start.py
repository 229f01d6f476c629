"""init_from on the command line: a run's folder becomes its address, and what cannot be ends with one line and code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.embedded import EmbeddedStore
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_record import RunRecord, write_run
from components.normalize.step import run as normalize
from pipelines.run.warm_start import with_address
from tests.pipelines.tiny_run import Cellsignal
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """The folder of a run as `cellsignal run` leaves it, with its store in `there`."""
    return leave_run(tmp_path, "store.bucket=mine", "store.prefix=team/a")


def leave_run(tmp_path: Path, *changes: str) -> Path:
    config = RunConfig.load("demo", list(changes))
    job = {
        "config": json.loads(config.model_dump_json()), "store": str(tmp_path / "there"), "truth": "",
        "lineage": {"run": "demo-1a2b"},
    }  # fmt: skip
    (tmp_path / "runs" / "demo" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "run" / "job.json").write_text(json.dumps(job))
    return tmp_path / "runs" / "demo"


def address(given: str, store: Path, *changes: str) -> str | None:
    return with_address(RunConfig.load("demo", [f"init_from={given}", *changes]), store).init_from


def test_a_folder_becomes_the_address_of_its_run(started: Path, tmp_path: Path) -> None:
    assert address(str(started), tmp_path / "there") == "s3://mine/team/a/runs/demo-1a2b"


@pytest.mark.parametrize("prefix", ["", "team/a"])
def test_the_store_of_a_folders_run_may_be_a_folder(tmp_path: Path, prefix: str) -> None:
    lab = (tmp_path / "lab data").as_uri()
    run = leave_run(tmp_path, f"store.bucket={lab}", f"store.prefix='{prefix}'")
    expected = f"{lab}/{prefix}/runs/demo-1a2b" if prefix else f"{lab}/runs/demo-1a2b"
    assert address(str(run), tmp_path / "here") == expected
    assert address(str(run), tmp_path / "here", f"store.bucket={lab}") == expected


def test_a_run_that_keeps_things_in_a_folder_cannot_reach_an_embedded_store(
    started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = f"store.bucket={(tmp_path / 'lab').as_uri()}"
    with pytest.raises(
        InputError, match=rf"^init_from: {started} lies in the embedded object store {tmp_path}/there, "
    ):
        address(str(started), tmp_path / "there", changes)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert address(str(started), tmp_path / "there", changes) == "s3://mine/team/a/runs/demo-1a2b"


@pytest.mark.parametrize("given", ["demo-1a2b", "s3://bucket/runs/demo-1a2b", "file:///lab/runs/demo-1a2b"])
def test_keys_and_addresses_stay(given: str, tmp_path: Path) -> None:
    assert address(given, tmp_path) == given
    assert with_address(RunConfig.load("demo"), tmp_path).init_from is None


def test_a_run_in_another_embedded_store_cannot_be_reached(
    started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=rf"lies in the object store {tmp_path}/there, .*; give --store {tmp_path}/there"
    ):
        address(str(started), tmp_path / "here")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert address(str(started), tmp_path / "here") == "s3://mine/team/a/runs/demo-1a2b"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for given, message in ((tmp_path, "not the folder of a run"), (tmp_path / "none", "neither a key nor a folder")):
        with pytest.raises(InputError, match=rf"^init_from: {given}: {message}"):
            address(str(given), tmp_path)


def test_a_run_that_cannot_start_is_refused_before_anything_is_made(
    cellsignal: Cellsignal,
    config_file: Path,
    either_store: ObjectStore | FolderStore,
    embedded_store: EmbeddedStore,
    tmp_path: Path,
) -> None:
    """No --screen: it would be simulated first, which takes longer than to look at the other run."""
    store, config = either_store, RunConfig.load(str(config_file))
    here, environment = f"store.bucket={store.uri('')}", {}
    if isinstance(store, ObjectStore):
        here, environment = f"store.prefix={store.prefix}", embedded_store.environment()
    TinyScreen(tmp_path / "other")
    paths = [tmp_path / name for name in ("s.json", "h.json", "l.csv")]
    normalize(CONFIG, tmp_path / "other", MemoryStore(), *paths)
    record = RunRecord(key="old-1", config=json.loads(config.model_dump_json()), lineage={})
    write_run(store, record, *(path.read_bytes() for path in paths))

    def refused(*changes: str) -> str:
        given = [part for change in (here, *changes) for part in ("--set", change)]
        return cellsignal.refused("run", "--config", config_file, "--out", "out", *given, environment=environment)

    assert f"init_from: no run old-2 below {store.uri('')} (runs there: old-1)" in refused("init_from=old-2")
    assert "has no pretrained weights of fold 0" in refused(f"init_from={store.uri('runs/old-1')}")
    nowhere = (tmp_path / "nowhere").as_uri()
    assert f"no run old-1 below {nowhere} (there are no runs)" in refused(f"init_from={nowhere}/runs/old-1")
    assert "file:///FOLDER/runs/KEY" in refused(f"init_from={nowhere}")
    assert "init_from: run old-1 has no pretrained weights of fold 0 and tiny (it has none)" in refused(
        "init_from=old-1"
    )
    assert "backbone tiny has stem 8, but 4 in run old-1" in refused("init_from=old-1", "backbones.0.stem=8")
    assert "init_from gives every backbone its weights" in refused("init_from=old-1", "backbones.0.weights=w.pt")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "nowhere").exists()
