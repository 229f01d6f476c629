"""`cellsignal store`: what it shows, asks, removes, and rejects."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from components.core.errors import InputError
from components.core.storage.object_store import ObjectStore, StoredObject
from components.core.storage.run_records import RunRecord
from components.core.storage.runs import read_runs, record_task, write_run
from pipelines.cli import app
from pipelines.options import FULL_WIDTH, duration
from pipelines.store.tables import run_row, runs_table
from tests.components.core.manifests import manifest
from tests.pipelines.tiny_run import ROOT, Cellsignal
from tests.seaweedfs import S3Server

PLATE, OTHER_PLATE, OLD_PLATE = (f"plates/HUVEC-0{n}_Plate1-{n:032x}" for n in (1, 2, 3))
OUTPUT, OTHER_OUTPUT, OLD_OUTPUT = (f"finished/pretrain/{n:064x}" for n in (1, 2, 3))
EVERYTHING = {PLATE, OTHER_PLATE, OLD_PLATE, OUTPUT, OTHER_OUTPUT, OLD_OUTPUT, "runs/mine-1", "runs/next-2"}


def invoke(store: ObjectStore, *arguments: str) -> Result:
    done = CliRunner().invoke(app, [*in_group(*arguments), "--store", store.uri("")], env={"COLUMNS": "200"})
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def in_group(*arguments: str) -> list[str]:
    """The command line of `cellsignal runs`, or of a command of `cellsignal store`."""
    return [*([] if arguments[0] == "runs" else ["store"]), *arguments]


def unconfirmed(store: ObjectStore, *arguments: str) -> Result:
    """A removal without --yes and without a terminal."""
    done = CliRunner().invoke(app, [*arguments, "--store", store.uri("")])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == "nothing was removed: there is no terminal to confirm on; give --yes to remove"
    return done


def rows_of(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.output.splitlines()]


def write_records(store: ObjectStore, key: str, plate: str, output: str, **config: object) -> None:
    folds = {"folds": {"count": 5, "train": [0, 1]}, "screen": {"cell_types": ["HUVEC"]}}
    lineage = {"run": key, "started": "2026-11-20T08:30:00+00:00", "screen": "/data/screen"}
    record = RunRecord(key=key, config={"name": key[:-2], **folds, **config}, lineage=lineage)
    screen = manifest([], run=key)
    record_task(store, screen, output, "pretrain", fold=0, backbone="a")
    record_task(store, screen, output, "infer", fold=0, cell_type="HUVEC", holdout=screen)
    write_run(store, record, b"{}", b"{}", None, [plate])


@pytest.fixture
def filled(tmp_path: Path) -> ObjectStore:
    """Two runs that share nothing, and a plate and an output that neither needs."""
    store = ObjectStore((tmp_path / "store").as_uri())
    (tmp_path / "store").mkdir()
    for plate in (PLATE, OTHER_PLATE, OLD_PLATE):
        store.put_many((f"{plate}/{name}", b"x" * 500) for name in ("plate.json", "B/03/0/c"))
    for output in (OUTPUT, OTHER_OUTPUT, OLD_OUTPUT):
        store.put(f"{output}/{1:032x}/weights", b"w" * 1000)
        store.put(f"{output}/done.json", b"d" * 50)
    write_records(store, "mine-1", PLATE, OUTPUT)
    write_records(store, "next-2", OTHER_PLATE, OTHER_OUTPUT, init_from="s3://x/runs/mine-1")
    return store


def groups(store: ObjectStore) -> set[str]:
    return {"/".join(key.split("/")[: 2 if key.startswith(("plates", "runs")) else 3]) for key in store.list("")}


def test_gc_shows_garbage_and_removes_it_only_with_yes_and_if_it_is_old(filled: ObjectStore) -> None:
    young = invoke(filled, "gc", "--yes").output
    assert "nothing to remove" in young
    assert "of these, 4 objects, 2.0 kB are in no run's record, but younger than 2d" in young
    assert unconfirmed(filled, "store", "gc", "--older-than", "0m", "--json").stdout == ""
    shown = unconfirmed(filled, "store", "gc", "--older-than", "0m")
    assert {"plates 1 2 1.0 kB", "finished outputs 1 2 1.1 kB", "total 2 4 2.0 kB"} <= {*rows_of(shown)}
    assert "kept: 8 objects, 4.1 kB (2 recorded runs)" in shown.output
    assert "nothing was removed (--dry-run)" in invoke(filled, "gc", "--older-than", "0m", "--yes", "--dry-run").output
    assert groups(filled) == EVERYTHING
    assert "removed 4 objects" in invoke(filled, "gc", "--older-than", "0m", "--yes").output
    assert groups(filled) == EVERYTHING - {OLD_PLATE, OLD_OUTPUT}
    assert "nothing to remove" in invoke(filled, "gc", "--older-than", "0m", "--yes").output


def test_gc_continues_without_the_right_to_list_unfinished_uploads(
    filled: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: ObjectStore, _prefix: str) -> Iterator[StoredObject]:
        raise InputError("list uploads refused")

    monkeypatch.setattr(ObjectStore, "unfinished_uploads", refuse)
    done = invoke(filled, "gc", "--older-than", "0m", "--yes").output
    assert "unfinished uploads are left alone: list uploads refused" in done
    assert "removed 4 objects" in done
    invoke(filled, "runs", "--sizes")
    invoke(filled, "forget", "mine-1", "--yes")


def test_runs_are_listed_with_their_kind_and_what_each_alone_keeps(filled: ObjectStore) -> None:
    write_records(filled, "else-9", PLATE, OUTPUT, name="elsewhere")
    key = "runs/next-2/run.json"
    predicted = {"model": "ab" * 32, "folds": {"HUVEC": [0, 1, 2], "RPE": [1]}}
    filled.put(key, json.dumps({**json.loads(filled.get(key)), "prediction": predicted}).encode())
    for name, partial in (("mine-1", {}), ("else-9", {"partial": {"folds": 1}})):
        filled.put(f"runs/{name}/results/lineage.json", json.dumps({"run": name, **partial}).encode())
    rows = rows_of(invoke(filled, "runs", "--sizes"))
    assert "mine-1 training mine 2026-11-20 08:30 /data/screen finished 1/2 a moment 0 bytes" in rows
    assert "next-2 prediction by abababababab next 2026-11-20 08:30 /data/screen unfinished 1/4 a moment 2.0 kB" in rows
    assert "else-9 training elsewhere 2026-11-20 08:30 /data/screen unfinished 1/2 a moment 0 bytes" in rows


@pytest.mark.parametrize("width", [60, 80, 100, 140, FULL_WIDTH])
@pytest.mark.parametrize("sized", [True, False])
def test_keys_times_and_sizes_are_whole_at_any_width(filled: ObjectStore, width: int, sized: bool) -> None:
    keys = ["experiment-123456789abc", "b-2"]
    filled.delete_prefix("runs/")
    for key in keys:
        write_records(filled, key, PLATE, OUTPUT, name="another name")
    rows = [{**run_row(run), "screen": "/data/" + "screen/" * 20} for run in read_runs(filled)]
    console = Console(file=io.StringIO(), width=width)
    console.print(runs_table(rows, dict.fromkeys(keys, 123_400_000) if sized else {}, width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (*(keys if width > 60 else ["b-2"]), "2026-11-20 08:30", "a moment", *(["123.4 MB"] if sized else [])):
        assert text in shown
    assert ("/data/screen/" in shown) == (width == FULL_WIDTH)


def test_json_is_one_document_on_stdout(filled: ObjectStore) -> None:
    def document(*arguments: str) -> dict[str, Any]:
        return dict(json.loads(invoke(filled, *arguments, "--json").stdout))

    shown = document("runs", "--sizes")
    assert shown["store"] == filled.uri("")
    run = next(run for run in shown["runs"] if run["key"] == "next-2")
    known = {"kind": "training", "init_from": "s3://x/runs/mine-1", "finished_folds": 1, "folds": 2}
    assert run.items() >= {**known, "bytes_alone": 2050}.items()
    garbage = document("gc", "--older-than", "0m", "--yes")
    assert [(each["kind"], each["objects"]) for each in garbage["garbage"]] == [("plate", 2), ("finished output", 2)]
    assert garbage["removed_objects"] == 4
    assert document("gc", "--older-than", "0m", "--yes")["garbage"] == []
    assert document("forget", "mine-1", "--dry-run")["forgotten"] == []
    assert document("forget", "mine-1", "--yes")["forgotten"] == ["mine-1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{", r"damaged, not a run's record .*`cellsignal store forget`"),
        ("run.json", None, "missing"),
        ("tasks/pretrain/0/a.json", b"[]", "damaged, not a task's record"),
    ],
)
def test_a_record_that_cannot_be_read_stops_gc_until_its_run_is_forgotten(
    filled: ObjectStore, name: str, content: bytes | None, message: str
) -> None:
    filled.delete(f"runs/next-2/{name}")
    if content:
        filled.put(f"runs/next-2/{name}", content)
    shown = " ".join(invoke(filled, "runs").output.split())
    assert ("next-2 unknown (damaged record)" in shown) == (name == "run.json")
    before = filled.list()
    with pytest.raises(InputError, match=f"runs/next-2/{name}: {message}.*it is not known what run next-2 needs"):
        invoke(filled, "gc", "--older-than", "0m", "--yes")
    assert filled.list() == before
    invoke(filled, "forget", "next-2", "--yes")
    invoke(filled, "gc", "--older-than", "0m", "--yes")
    assert groups(filled) == {PLATE, OUTPUT, "runs/mine-1"}


def test_forget_removes_the_record_and_gc_the_rest(filled: ObjectStore) -> None:
    with pytest.raises(InputError, match=r"other: no such run below .*`cellsignal runs`"):
        invoke(filled, "forget", "mine-1", "other", "--yes")
    shown = unconfirmed(filled, "store", "forget", "mine-1").output
    assert "mine-1 was active a moment ago; if it is still running, leave it alone" in shown
    assert "next-2 starts from the weights of mine-1 (init_from), and could not be run again" in shown
    assert groups(filled) == EVERYTHING
    shown = invoke(filled, "forget", "mine-1", "--yes").output
    assert "forgotten: mine-1; `cellsignal store gc` removes what only they needed" in shown
    assert filled.list("runs/mine-1/") == []
    invoke(filled, "gc", "--older-than", "0m", "--yes")
    assert groups(filled) == {OTHER_PLATE, OTHER_OUTPUT, "runs/next-2"}


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("\n", False)])
def test_asks_for_confirmation_at_a_terminal(filled: ObjectStore, answer: str, removed: bool) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "store", "gc", "--older-than", "0m", "--store", filled.uri("")],
        stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    os.write(leader, answer.encode())
    out, errors = process.communicate(timeout=120)
    os.close(leader)
    os.close(follower)
    assert process.returncode == 0, errors
    assert "Remove 4 objects, 2.0 kB?" in out
    assert ("removed 4 objects" in out, "nothing was removed" in out) == (removed, not removed)
    assert (groups(filled) == EVERYTHING) is not removed


def rejected(*arguments: str) -> str:
    with pytest.raises(InputError) as error:
        CliRunner().invoke(app, in_group(*arguments), catch_exceptions=False)
    return str(error.value)


def test_rejects_bad_usage(cellsignal: Cellsignal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["runs", "--store", "file"], "file: there is no object store"),
        (["gc", "--older-than", "soon"], "--older-than 'soon': expected a number followed by m, h, d or w"),
        (["gc", "--set", "store.bucket=abc"], "--set changes a configuration; give --config as well"),
        (["gc", "--bucket", "b"], "--bucket: bucket: string should have at least 3 characters, got 'b'"),
        (["gc", "--bucket", "file://lab"], "or file:///FOLDER"),
    ):
        assert message in rejected(*arguments), arguments
    monkeypatch.setenv("CELLSIGNAL_STORE", "s3:/lab")
    assert "CELLSIGNAL_STORE s3:/lab: write s3://BUCKET" in rejected("gc")
    monkeypatch.delenv("CELLSIGNAL_STORE")
    line = cellsignal.refused("store", "gc", "--store", "nowhere")
    assert "nowhere: there is no object store; correct --store" in line
    assert not (tmp_path / "nowhere").exists()


def test_the_option_wins_over_the_environment_and_that_over_the_configuration(s3_server: S3Server, tmp_path: Path):
    for name in ("option", "environment", "configured", "usual/cellsignal/store"):
        (tmp_path / name).mkdir(parents=True)
    known = {"XDG_CACHE_HOME": str(tmp_path / "usual"), "CELLSIGNAL_STORE": str(tmp_path / "environment")}
    configured = ("--config", "demo", "--set", f"store.bucket={(tmp_path / 'configured').as_uri()}")
    in_bucket = {**s3_server.environment(), "CELLSIGNAL_STORE": "s3://cellsignal/team/"}
    for arguments, environment, used in (
        ((*configured, "--store", str(tmp_path / "option")), known, (tmp_path / "option").as_uri()),
        (configured, known, (tmp_path / "environment").as_uri()),
        (configured, {**known, "CELLSIGNAL_STORE": ""}, (tmp_path / "configured").as_uri()),
        ((), {**known, "CELLSIGNAL_STORE": ""}, (tmp_path / "usual/cellsignal/store").as_uri()),
        ((), in_bucket, "s3://cellsignal/team"),
    ):
        done = CliRunner().invoke(app, ["runs", *arguments], env=environment, catch_exceptions=False)
        assert (done.exit_code, done.stdout) == (0, f"{used}: no runs\n")


def test_reading_creates_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lab data"
    folder.mkdir()
    configured = ("--config", "demo", "--set", f"store.bucket={folder.as_uri()}", "--set", "store.prefix=team")
    assert "/team: there is no object store" in rejected("gc", *configured)
    (folder / "team").mkdir()
    for command, message in (("runs", "no runs"), ("gc", "nothing to remove")):
        done = CliRunner().invoke(app, [*in_group(command), *configured], catch_exceptions=False)
        assert f"{folder.as_uri()}/team: {message}" in done.stdout
    (folder / "team").rmdir()
    line = rejected("gc", "--bucket", f"{folder.as_uri()}/unmounted")
    assert "unmounted: there is no object store; correct --store or CELLSIGNAL_STORE, or mount its file system" in line
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLSIGNAL_STORE", raising=False)
    assert "cache/cellsignal/store: nothing has been stored yet; start with `cellsignal run`" in rejected("runs")
    assert not (tmp_path / "cache").exists()


def test_durations() -> None:
    for text, hours in (("90m", 1.5), ("36h", 36), ("1.5d", 36), ("2w", 14 * 24), ("999999w", 36_500 * 24)):
        assert duration(text) == timedelta(hours=hours)
    for text in ("", "2", "d", "-1d", "2 days", "1e9d", "9999999d"):
        with pytest.raises(InputError, match="for example 36h or 14d"):
            duration(text)
