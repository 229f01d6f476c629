"""`cellsignal store`: what it shows, what it asks, what it removes, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from components.core.config import PackConfig
from components.core.errors import InputError
from components.core.storage.folder_store import FolderStore
from components.core.storage.manifest import Manifest, Vocabulary
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import record_task
from pipelines.cli import app
from pipelines.options import duration
from pipelines.store.tables import shown_age, shown_size
from tests.pipelines.tiny_run import ROOT, Cellsignal
from tests.seaweedfs import S3Server

PLATE, OTHER_PLATE, OLD_PLATE = (f"plates/HUVEC-0{n}_Plate1-{n:032x}" for n in (1, 2, 3))
PLACE, OTHER_PLACE, LOST = (f"finished/pretrain/{n:064x}" for n in (1, 2, 3))
VOCABULARY = Vocabulary(treatments=("a",), positives=(), negatives=())


def options_of(store: ObjectStore | FolderStore) -> list[str]:
    return ["--store", store.uri("")]


def invoke(store: ObjectStore | FolderStore, *arguments: str) -> Result:
    done = CliRunner().invoke(app, ["store", *arguments, *options_of(store)], env={"COLUMNS": "200"})
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def write_record(store: ObjectStore | FolderStore, key: str, plate: str, place: str, **config: object) -> None:
    content = {
        "schema_version": 1,
        "key": key,
        "plates": [plate],
        "config": {
            "name": key[:-2],
            "folds": {"count": 5, "train": [0, 1]},
            "screen": {"cell_types": ["HUVEC"]},
            **config,
        },
        "lineage": {"run": key, "started": "2026-11-20T08:30:00+00:00", "screen": "/data/screen"},
    }
    screen = Manifest(
        store="s3://x",
        channels=6,
        image_size=8,
        codec=PackConfig(),
        vocabulary=VOCABULARY,
        folds={},
        plates=(),
        run=key,
    )
    record_task(store, screen, place, "pretrain", 0, backbone="a")
    record_task(store, screen, place, "infer", 0, "HUVEC", holdout=screen)
    store.put(f"runs/{key}/run.json", json.dumps(content).encode())


@pytest.fixture
def filled(either_store: ObjectStore | FolderStore) -> ObjectStore | FolderStore:
    """Two runs that share nothing, and a plate and an output of none."""
    store = either_store
    for plate in (PLATE, OTHER_PLATE, OLD_PLATE):
        store.put_many((f"{plate}/{name}", b"x" * 500) for name in ("plate.json", "B/03/0/c"))
    for place in (PLACE, OTHER_PLACE, LOST):
        store.put(f"{place}/{1:032x}/weights", b"w" * 1000)
        store.put(f"{place}/done.json", json.dumps({"attempt": f"{1:032x}"}).encode())
    write_record(store, "mine-1", PLATE, PLACE)
    write_record(store, "next-2", OTHER_PLATE, OTHER_PLACE, init_from="s3://x/runs/mine-1")
    return store


def groups(store: ObjectStore | FolderStore) -> set[str]:
    return {"/".join(key.split("/")[: 2 if key.startswith(("plates", "runs")) else 3]) for key in store.list()}


EVERYTHING = {PLATE, OTHER_PLATE, OLD_PLATE, PLACE, OTHER_PLACE, LOST, "runs/mine-1", "runs/next-2"}


def test_gc_shows_what_it_would_remove_and_without_a_terminal_removes_nothing(
    filled: ObjectStore | FolderStore,
) -> None:
    shown = invoke(filled, "gc", "--older-than", "0m").output
    assert f"{filled.uri('')}: what no run needs and is older than 0m\n" in shown
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "plates 1 2 1.0 kB a moment" in rows
    assert "finished outputs 1 2 1.0 kB a moment" in rows
    assert "total 2 4 2.0 kB" in rows
    assert "kept: 4.1 kB (2 recorded runs)" in shown
    assert "nothing was removed: there is no terminal to confirm on; give --yes to remove" in shown
    assert groups(filled) == EVERYTHING


def test_gc_with_yes_removes_what_no_run_needs(filled: ObjectStore | FolderStore) -> None:
    assert "nothing was removed (--dry-run)" in invoke(filled, "gc", "--older-than", "0m", "--yes", "--dry-run").output
    assert groups(filled) == EVERYTHING
    assert "removed 4 objects" in invoke(filled, "gc", "--older-than", "0m", "--yes").output
    assert groups(filled) == EVERYTHING - {OLD_PLATE, LOST}
    assert "nothing to remove" in invoke(filled, "gc", "--older-than", "0m", "--yes").output


def test_gc_keeps_young_things_and_says_so(filled: ObjectStore | FolderStore) -> None:
    shown = invoke(filled, "gc", "--yes").output
    assert "nothing to remove" in shown
    assert "no record names 4 objects, 2.0 kB, which may belong to runs in progress (younger than 2d)" in shown
    assert groups(filled) == EVERYTHING


def test_an_empty_store_is_reported(either_store: ObjectStore | FolderStore) -> None:
    store = either_store
    assert f"{store.uri('')}: nothing to remove" in invoke(store, "gc", "--yes").output
    assert "no run is recorded here" in invoke(store, "gc").output
    assert f"{store.uri('')}: no runs" in invoke(store, "runs").output


def rows_of(shown: Result) -> list[str]:
    return [" ".join(line.split()) for line in shown.output.splitlines()]


def test_runs_are_listed_with_their_kind(filled: ObjectStore | FolderStore) -> None:
    write_record(filled, "else-9", PLATE, PLACE, name="elsewhere")
    key = "runs/next-2/run.json"
    predicted = {
        "model": "ab" * 32, "address": "s3://x", "experiments": [], "any_cell_type": False,
        "folds": {"HUVEC": [0, 1, 2], "RPE": [1]},
    }  # fmt: skip
    filled.put(key, json.dumps({**json.loads(filled.get(key)), "prediction": predicted}).encode())
    filled.put("retrainings/demo/0a/outcome.json", b'{"run": "else-9"}')
    rows = rows_of(invoke(filled, "runs"))
    assert "mine-1 training mine 2026-11-20 08:30 /data/screen 1/2 a moment" in rows
    assert "next-2 prediction by abababababab next 2026-11-20 08:30 /data/screen 1/4 a moment" in rows
    assert "else-9 retraining elsewhere 2026-11-20 08:30 /data/screen 1/2 a moment" in rows


def test_sizes_are_what_a_run_alone_keeps(filled: ObjectStore | FolderStore) -> None:
    write_record(filled, "same-3", OTHER_PLATE, OTHER_PLACE)
    rows = rows_of(invoke(filled, "runs", "--sizes"))
    sizes = {row[:6]: row.rsplit("moment ")[-1] for row in rows}
    assert {key: sizes[key] for key in ("mine-1", "next-2", "same-3")} == {
        "mine-1": "2.0 kB", "next-2": "0 B", "same-3": "0 B",
    }  # fmt: skip


def test_json_is_one_document_on_stdout(filled: ObjectStore | FolderStore) -> None:
    def document(*arguments: str) -> dict[str, Any]:
        return dict(json.loads(invoke(filled, *arguments, "--json").stdout))

    shown = document("runs", "--sizes")
    assert shown["store"] == filled.uri("")
    first = next(run for run in shown["runs"] if run["key"] == "next-2")
    known = {
        "kind": "training",
        "init_from": "s3://x/runs/mine-1",
        "finished_folds": 1,
        "folds": 2,
        "bytes_alone": 2047,
    }
    assert first.items() >= known.items()
    garbage = document("gc", "--older-than", "0m", "--yes")
    assert [(each["kind"], each["objects"]) for each in garbage["garbage"]] == [("plate", 2), ("finished output", 2)]
    assert garbage["removed_objects"] == 4
    assert document("gc", "--older-than", "0m", "--yes")["garbage"] == []
    assert document("forget", "mine-1", "--dry-run")["forgotten"] == []
    assert document("forget", "mine-1", "--yes")["forgotten"] == ["mine-1"]


@pytest.mark.parametrize(("content", "message"), [(None, "missing"), (b"{", "damaged, not a run's record")])
def test_a_bad_record_stops_gc_until_its_run_is_forgotten(
    filled: ObjectStore | FolderStore, content: bytes | None, message: str
) -> None:
    if content is None:
        filled.delete("runs/next-2/run.json")
    else:
        filled.put("runs/next-2/run.json", content)
    assert "next-2 unknown (damaged record)" in " ".join(invoke(filled, "runs").output.split())
    with pytest.raises(
        InputError, match=rf"runs/next-2/run.json: {message}.*`cellsignal store forget`.*what run next-2 needs"
    ):
        invoke(filled, "gc", "--older-than", "0m", "--yes")
    invoke(filled, "forget", "next-2", "--yes")
    invoke(filled, "gc", "--older-than", "0m", "--yes")
    assert groups(filled) == {PLATE, PLACE, "runs/mine-1"}


def test_forget_shows_removes_the_record_and_gc_the_rest(filled: ObjectStore | FolderStore) -> None:
    shown = invoke(filled, "forget", "mine-1").output
    assert "mine-1 was active a moment ago; if it is still running, leave it alone" in shown
    assert "next-2 starts from its weights (init_from), and could not be run again" in shown
    assert "nothing was removed: there is no terminal" in shown
    assert groups(filled) == EVERYTHING
    shown = invoke(filled, "forget", "mine-1", "--yes").output
    assert "forgotten: mine-1; `cellsignal store gc` removes what only they needed" in shown
    assert filled.list("runs/mine-1/") == []
    invoke(filled, "gc", "--older-than", "0m", "--yes")
    assert groups(filled) == {OTHER_PLATE, OTHER_PLACE, "runs/next-2"}


def test_forgetting_an_unknown_run_names_the_ones_there_are_and_forgets_none(filled: ObjectStore | FolderStore) -> None:
    with pytest.raises(InputError, match=r"other: no such run below .* \(runs there: mine-1, next-2\)"):
        invoke(filled, "forget", "mine-1", "other", "--yes")
    assert groups(filled) == EVERYTHING


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_at_a_terminal_is_asked(filled: ObjectStore | FolderStore, answer: str, removed: bool) -> None:
    leader, follower = pty.openpty()
    arguments = ["store", "gc", "--older-than", "0m", *options_of(filled)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments], stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    os.write(leader, answer.encode())
    out, errors = process.communicate(timeout=120)
    os.close(leader)
    os.close(follower)
    assert process.returncode == 0, errors
    assert "Remove 4 objects, 2.0 kB?" in out
    assert ("removed 4 objects" in out, "nothing was removed" in out) == (removed, not removed)
    assert (groups(filled) == EVERYTHING) is not removed


def test_bad_usage_is_one_line_and_exit_code_2(cellsignal: Cellsignal, s3_server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["gc", "--store", "nowhere"], "nowhere: there is no object store; correct --store"),
        (["runs", "--store", "file"], "file: there is no object store"),
        (["gc", "--older-than", "soon"], "--older-than 'soon': a number and m, h, d or w is expected"),
        (["gc", "--set", "store.bucket=abc"], "--set changes a configuration; give --config as well"),
        (["gc", "--bucket", "b"], "--bucket, --prefix: bucket: string should have at least 3 characters, got 'b'"),
    ):
        assert message in cellsignal.refused("store", *arguments), arguments
    environment = s3_server.environment()
    line = cellsignal.refused("store", "forget", "none-1", "--store", "s3://cellsignal/empty", environment=environment)
    assert "none-1: no such run below s3://cellsignal/empty (there are no runs)" in line
    line = cellsignal.refused("store", "gc", "--bucket", "elsewhere", environment=environment)
    assert "no such bucket" in line
    assert not (tmp_path / "nowhere").exists()


def test_the_option_wins_over_the_environment_and_that_over_the_configuration(
    cellsignal: Cellsignal, s3_server: S3Server, tmp_path: Path
) -> None:
    for name in ("option", "environment", "configured", "usual/cellsignal/store"):
        (tmp_path / name).mkdir(parents=True)
    known = {"XDG_CACHE_HOME": str(tmp_path / "usual"), "CELLSIGNAL_STORE": str(tmp_path / "environment")}
    configured = ("--config", "demo", "--set", f"store.bucket={(tmp_path / 'configured').as_uri()}")
    for more, environment, used in (
        ((*configured, "--store", "option"), known, tmp_path / "option"),
        (configured, known, tmp_path / "environment"),
        (configured, {**known, "CELLSIGNAL_STORE": ""}, tmp_path / "configured"),
        ((), {**known, "CELLSIGNAL_STORE": ""}, tmp_path / "usual/cellsignal/store"),
    ):
        done = cellsignal("store", "runs", *more, environment=environment)
        assert (done.returncode, done.stdout) == (0, f"{used.as_uri()}: no runs\n"), done.stderr
    for address in ("s3://cellsignal/team", "s3://cellsignal/team/"):
        done = cellsignal("store", "runs", environment={**s3_server.environment(), "CELLSIGNAL_STORE": address})
        assert (done.returncode, done.stdout) == (0, "s3://cellsignal/team: no runs\n"), done.stderr
    assert "write s3://BUCKET[/PREFIX], file:///FOLDER or a directory" in cellsignal.refused(
        "store", "runs", "--store", "gs://lab"
    )


def test_a_folder_is_opened_by_a_configuration_and_nothing_is_made(cellsignal: Cellsignal, tmp_path: Path) -> None:
    folder = tmp_path / "lab data"
    folder.mkdir()
    configured = ("--config", "demo", "--set", f"store.bucket={folder.as_uri()}", "--set", "store.prefix=team")
    for command, said in (("runs", "no runs"), ("gc", "nothing to remove")):
        done = cellsignal("store", command, *configured)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{folder.as_uri()}/team: {said}" in done.stdout
    line = cellsignal.refused("store", "forget", "none-1", *configured)
    assert f"none-1: no such run below {folder.as_uri()}/team (there are no runs)" in line
    line = cellsignal.refused("store", "gc", "--bucket", f"{folder.as_uri()}/unmounted")
    assert "unmounted: there is no object store; correct --store or CELLSIGNAL_STORE, or mount its file system" in line
    assert "write file:///FOLDER" in cellsignal.refused("store", "gc", "--bucket", "file://lab")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("36h", timedelta(hours=36)),
        ("1.5d", timedelta(hours=36)),
        ("2w", timedelta(14)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert duration(text) == expected


@pytest.mark.parametrize("text", ["", "2", "d", "-1d", "2 days", "1e9d", "9999999d"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="for example 36h or 14d"):
        duration(text)


def test_sizes_and_ages_are_shown_with_their_largest_unit() -> None:
    sizes = [0, 999, 1000, 999_499, 999_500, 1_500_000, 42_000_000_000, 5 * 10**12]
    assert [shown_size(size) for size in sizes] == [
        "0 B", "999 B", "1.0 kB", "999 kB", "1.0 MB", "1.5 MB", "42.0 GB", "5.0 TB",
    ]  # fmt: skip
    ages = [-5, 59, 60, 7199, 7200, 172799, 172800]
    assert [shown_age(timedelta(seconds=age)) for age in ages] == [
        "a moment", "a moment", "1 minute", "119 minutes", "2 hours", "47 hours", "2 days",
    ]  # fmt: skip
