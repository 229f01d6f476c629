"""`cellsignal status` and `cellsignal runs`: which run, what they show, and how they exit."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError, StepError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import RECIPE, RunRecord, run_file
from components.core.storage.runs import record_results
from components.core.storage.task_status import StatusReader, StatusReporter, TaskStatus
from pipelines import status
from pipelines.cli import app
from tests.pipelines.tiny_run import CONFIG

KEY = "tiny-0123456789ab"


def invoke(store: ObjectStore, *arguments: str, command: str = "status") -> Result:
    done = CliRunner().invoke(app, [command, *arguments, "--store", store.uri("")], env={"COLUMNS": "200"})
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code in (0, 3), done.output
    return done


def rows_of(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "store").mkdir()
    return ObjectStore(tmp_path / "store")


def report(store: ObjectStore, step: str, state: str, run: str = KEY, minutes_ago: float = 0.0, **fields: Any) -> None:
    """Writes what an attempt that began ten minutes before its last report has reported."""
    now = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    times = {"started": now - timedelta(minutes=10), "updated": now}
    content = TaskStatus.model_validate({"step": step, "state": state, "node": "node-7", **times, **fields})
    key = run_file(run, f"status/{content.task.replace(' ', '-')}/{now.timestamp()}.json")
    store.put(key, content.model_dump_json().encode())
    assert store.root is not None
    os.utime(store.root / key, (now.timestamp(), now.timestamp()))


def record(store: ObjectStore, key: str = KEY, name: str = "tiny", **lineage: str) -> None:
    config = {**RunConfig.model_validate(yaml.safe_load(CONFIG)).model_dump(mode="json"), "name": name}
    content = RunRecord(key=key, config=config, lineage={"run": key, "started": "2026-11-20T08:30:00+00:00", **lineage})
    store.put(run_file(key, "run.json"), content.to_json())


def finish(store: ObjectStore, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/lineage.json").write_text(json.dumps({"run": KEY}))
    record_results(store, KEY, folder / "out")


def test_every_task_is_a_line_with_state_progress_time_and_node(store: ObjectStore) -> None:
    record(store)
    report(store, "normalize", "finished")
    report(store, "pretrain", "failed", fold=0, backbone="tiny", kind="step", message="CUDA error: lost", minutes_ago=9)
    report(store, "pretrain", "running", fold=0, backbone="tiny", what="epochs", done=3, total=40, minutes_ago=0.9)
    done = invoke(store, "--run", KEY)
    rows = rows_of(done)
    assert done.exit_code == 0
    assert rows[0] == f"run {KEY} running: 1 of 10 tasks finished, 1 running, 8 waiting"
    assert "normalize finished 10 min 00 s node-7" in rows
    running = r"pretrain fold 0 tiny running \(2 attempts\) 3 of 40 epochs 1[01] min \d\d s node-7"  # up to now
    assert any(re.fullmatch(running, row) for row in rows)
    assert "finetune fold 1 HUVEC waiting" in rows
    assert not any("CUDA" in row for row in rows), "it is working again"


def test_a_failed_run_is_explained_and_exits_with_3(store: ObjectStore) -> None:
    record(store)
    report(store, "normalize", "finished", minutes_ago=20)
    report(
        store, "pretrain", "failed", fold=0, backbone="tiny", kind="step", message="CUDA error: lost", minutes_ago=15
    )
    report(store, "pretrain", "running", fold=1, backbone="tiny", minutes_ago=11)
    done = invoke(store)
    rows = rows_of(done)
    assert done.exit_code == 3
    assert rows[0] == (
        f"run {KEY} failed: 1 of 10 tasks finished, 1 failed, 1 lost, 7 waiting; last report 11 min 00 s ago"
    )
    assert "pretrain fold 0 tiny: CUDA error: lost" in rows
    assert (
        "pretrain fold 1 tiny: it stopped reporting: its process was killed, or its pod or its node node-7 is gone"
        in rows
    )


def test_json_has_every_task_in_plain_values(store: ObjectStore) -> None:
    record(store)
    report(store, "normalize", "finished")
    report(store, "pretrain", "failed", fold=1, backbone="tiny", kind="input", message="train.csv row 7: no such well")
    done = invoke(store, "--json", "--run", f"{store.uri('')}/runs/{KEY}/")
    shown = json.loads(done.stdout)
    assert done.exit_code == 3
    assert (shown["run"], shown["state"], shown["store"]) == (KEY, "failed", store.uri(""))
    assert [task["task"] for task in shown["tasks"]][:3] == [
        "normalize",
        "pretrain fold 0 tiny",
        "finetune fold 0 HUVEC",
    ]
    (failed,) = (task for task in shown["tasks"] if task["state"] == "failed")
    expected = {"step": "pretrain", "fold": 1, "cell_type": None, "backbone": "tiny", "attempts": 1, "kind": "input"}
    assert expected.items() <= failed.items()
    assert (failed["failure"], failed["seconds"], failed["node"]) == ("train.csv row 7: no such well", 600.0, "node-7")
    assert (failed["done"], failed["unit"], failed["pod"]) == (None, None, None)
    waiting = shown["tasks"][1]
    assert (waiting["state"], waiting["ready"], waiting["started"]) == ("waiting", True, None)


def test_of_several_runs_the_most_recently_active_of_the_configuration_is_shown(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    for minutes_ago, key, name in (
        (3, "tiny-aaaaaaaaaaaa", "tiny"),
        (2, "tiny-bbbbbbbbbbbb", "tiny"),
        (1, "else-cccccccccccc", "else"),
    ):
        report(store, "normalize", "finished", key, minutes_ago)
        record(store, key, name)
        at = time.time() - 60 * minutes_ago
        assert store.root is not None
        os.utime(store.root / run_file(key, "run.json"), (at, at))
    report(
        store, "normalize", "running", "tiny-large-dddddddddddd", 0.5
    )  # of another configuration, without a record yet
    mine = ("--config", str(tmp_path / "tiny.yaml"))
    assert "run tiny-bbbbbbbbbbbb " in invoke(store, *mine).stdout
    with monkeypatch.context() as patched:
        patched.setattr(
            ObjectStore, "get_present", lambda *_: pytest.fail("no record is needed to find the newest run")
        )
        assert status._newest(store, "tiny") == "tiny-bbbbbbbbbbbb"
    assert "run tiny-large-dddddddddddd " in invoke(store).stdout
    report(store, "normalize", "running", "tiny-eeeeeeeeeeee")
    assert "run tiny-eeeeeeeeeeee running" in invoke(store, *mine).stdout
    with pytest.raises(InputError, match=r"no run of configuration other; give --store, or --run as"):
        invoke(store, *mine, "--set", "name=other")


def test_a_run_without_a_record_yet_shows_what_has_reported(store: ObjectStore) -> None:
    report(store, "normalize", "running", what="plates", done=3, total=12)
    rows = rows_of(invoke(store, "--run", KEY))
    assert rows[0] == f"run {KEY} running: 0 of 1 tasks finished, 1 running, more once normalize has ended"
    assert any(row.startswith("normalize running 3 of 12 plates 10 min 0") for row in rows)
    (row,) = json.loads(invoke(store, "--json", command="runs").stdout)["runs"]
    assert (row["key"], row["state"], row["kind"], row["problem"]) == (KEY, "running", "unknown", None)


def test_a_run_that_has_just_been_submitted_has_not_reported_yet(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoke(store, "--run", KEY)
    assert (done.exit_code, rows_of(done)) == (
        0,
        [f"run {KEY}: no task has reported yet; `cellsignal runs` lists the runs of the store"],
    )
    assert json.loads(invoke(store, "--run", KEY, "--json").stdout)["tasks"] == []
    monkeypatch.setattr(status, "REFRESH", 0.05)
    looks = iter(range(9))

    def sleep(_: float) -> None:
        if next(looks) == 2:
            report(store, "normalize", "failed", kind="step", message="CUDA error: lost")

    monkeypatch.setattr(status.time, "sleep", sleep)
    done = invoke(store, "--run", KEY, "--watch")
    assert done.exit_code == 3
    assert [row.partition(" ")[2] for row in rows_of(done)].count(
        f"run {KEY}: no task has reported yet; `cellsignal runs` lists the runs of the store"
    ) == 1
    assert "normalize: CUDA error: lost" in rows_of(done)


def test_json_with_watch_and_a_store_without_runs_are_refused(store: ObjectStore) -> None:
    with pytest.raises(InputError, match=r"no run; give --store, or --run"):
        invoke(store)
    record(store)
    with pytest.raises(InputError, match="--json prints one state"):
        invoke(store, "--json", "--watch")


def test_all_tasks_of_a_run_with_results_are_finished(store: ObjectStore, tmp_path: Path) -> None:
    """Also one whose last report the store did not take."""
    record(store)
    report(store, "normalize", "running", minutes_ago=30)
    finish(store, tmp_path)
    done = invoke(store)
    assert done.exit_code == 0
    assert rows_of(done)[0] == f"run {KEY} finished: 10 of 10 tasks finished"


def test_watch_follows_until_the_run_ends(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(store)
    reporter = StatusReporter(store.uri(""), KEY, {"step": "normalize"})
    progress = iter((lambda: reporter({"event": "finish"}), lambda: finish(store, tmp_path)))
    # Between two looks of the command, the run makes its next step.
    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=lambda _: next(progress)()))
    done = invoke(store, "--watch")
    heads = [row.split(" ", 1)[1].partition(";")[0] for row in rows_of(done) if f" run {KEY}" in row]
    assert done.exit_code == 0
    assert heads[0] == f"run {KEY} running: 0 of 10 tasks finished, 1 running, 9 waiting"
    assert f"run {KEY} running: 1 of 10 tasks finished, 9 waiting" in heads, "between two tasks"
    assert rows_of(done).count(f"run {KEY} finished: 10 of 10 tasks finished") == 1, "the table comes last"


def test_ctrl_c_ends_watching_and_nothing_else(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "REFRESH", 0.05)
    record(store)
    report(store, "normalize", "running", minutes_ago=0)
    interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    interrupt.start()
    with pytest.raises(ContactError, match="no longer followed; the run is not affected"):
        CliRunner().invoke(app, ["status", "--watch", "--store", store.uri("")], catch_exceptions=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_table_higher_than_the_terminal_shows_the_tasks_at_work(store: ObjectStore) -> None:
    record(store)
    report(store, "normalize", "running")
    state = status._FollowedRun(store, KEY, None).read()
    for height, lines in ((40, 10), (12, 1)):
        console = Console(file=io.StringIO(), width=100)
        console.print(state.render(height))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert len(re.findall(r"^ \w+( fold \d)?( \w+)? +(running|waiting)", shown, re.MULTILINE)) == lines
        assert ("9 more tasks" in shown) == (lines == 1)


@pytest.mark.parametrize("pod", ["", "run-pretrain-1"])
def test_watch_of_a_failed_run_waits_for_another_attempt_on_a_cluster_only(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, pod: str
) -> None:
    monkeypatch.setattr(status, "REFRESH", 0.05)
    monkeypatch.setattr("pipelines.cluster.follow.STUCK", 0.8)
    monkeypatch.setenv("KUBECONFIG", "nowhere")
    record(store, **({RECIPE: "1"} if pod else {}))
    report(store, "normalize", "failed", kind="step", message="CUDA error: lost", pod=pod)
    begun = time.monotonic()
    done = invoke(store, "--watch")
    assert done.exit_code == 3
    assert (time.monotonic() - begun > 0.5) == bool(pod)


def test_watch_outlives_a_store_that_does_not_answer(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "REFRESH", 0.01)
    record(store)
    report(store, "normalize", "running")
    read, looks = StatusReader.read, []

    def flaky(reader: StatusReader) -> Any:
        looks.append(1)
        if 1 < len(looks) < 4:
            raise (StepError if len(looks) == 2 else InputError)("s3://cellsignal: no answer")
        if len(looks) == 4:
            report(store, "normalize", "failed", kind="step", message="CUDA error: lost")
        return read(reader)

    monkeypatch.setattr(StatusReader, "read", flaky)
    done = invoke(store, "--watch")
    assert done.output.count("s3://cellsignal: no answer") == 1
    assert done.exit_code == 3


def test_a_run_with_a_record_and_without_reports_waits(store: ObjectStore) -> None:
    record(store)
    assert rows_of(invoke(store))[0] == f"run {KEY} waiting: 0 of 10 tasks finished, 10 waiting"
