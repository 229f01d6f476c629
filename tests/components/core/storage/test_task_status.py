"""What tasks report about themselves, and what a reader makes of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from components.core import progress
from components.core.errors import InputError, StepError, StoreAccessError
from components.core.storage import task_status
from components.core.storage.object_store import ObjectStore
from components.core.storage.task_status import StatusReader, StatusReporter, finished_steps, report_status

RUN = "demo-1a2b"
PRETRAIN = {"step": "pretrain", "fold": 2, "backbone": "xception"}


def failing(error: Exception, address: str, run: str = RUN) -> None:
    """A task that fails once its run is known; its own error is raised."""

    def task() -> None:
        with progress.task("pretrain", fold=2, backbone="xception", cell_type=None):
            report_status(address, run)
            raise error

    with pytest.raises(type(error)) as raised:
        task()
    assert raised.value is error


def until(condition: object, seconds: float = 20.0) -> None:
    """Waits until a condition, a function without arguments, holds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.01)


def test_a_task_reports_its_start_its_progress_and_its_end(
    either_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_status, "INTERVAL", 0.02)
    monkeypatch.setenv("CELLSIGNAL_NODE", "node-7")
    monkeypatch.setenv("KFP_POD_NAME", "run-x-1")
    reader = StatusReader(either_store, RUN)
    with progress.task("pretrain", fold=2, backbone="xception", cell_type=None):
        report_status(either_store.uri(""), RUN)
        until(reader.read)
        ((running, silence),) = reader.read()
        assert (running.task, running.state, running.progress) == ("pretrain fold 2 xception", "running", "")
        assert (running.node, running.pod) == ("node-7", "run-x-1")
        assert silence < 20
        progress.epoch(epoch=3, epochs=40, loss=1.0, accuracy=None, sites_per_s=9.0, seconds=1.0, backbone="xception")
        until(lambda: reader.read()[0].status.progress == "3 of 40 epochs")
        assert reader.read()[0].alive
    ((ended, _),) = reader.read()
    assert (ended.state, ended.progress) == ("finished", "3 of 40 epochs")
    assert 0 < ended.seconds < 60
    until(lambda: not [each for each in threading.enumerate() if each.name == "status"])
    assert either_store.list(f"runs/{RUN}/") == either_store.list(f"runs/{RUN}/status/pretrain-fold-2-xception/")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("train.csv row 7: no such well"), "input", "train.csv row 7: no such well"),
        (RuntimeError("CUDA error:\n  lost"), "step", "RuntimeError: CUDA error: lost"),
        (
            StoreAccessError("s3://lab: no answer"),
            "step",
            "s3://lab: no answer",
        ),  # bad input for a command, not for a task
    ],
)
def test_a_failure_is_reported_with_its_kind_and_message(
    tmp_path: Path, error: Exception, kind: str, message: str
) -> None:
    store = ObjectStore(tmp_path)
    failing(error, store.uri(""))
    ((status, _),) = StatusReader(store, RUN).read()
    assert (status.state, status.kind, status.message) == ("failed", kind, message)


def test_a_task_without_a_run_or_beside_the_leader_reports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path)
    failing(StepError("a step by hand"), store.uri(""), run="")
    monkeypatch.setattr(progress, "_silent", True)
    failing(StepError("another process of the team"), store.uri(""))
    monkeypatch.setattr(progress, "_silent", False)
    with progress.task("assign"):
        report_status(store.uri(""), RUN)
    with pytest.raises(StepError), progress.task("ensemble"):
        raise StepError("after the task that reported")
    assert [(each.status.task, each.status.state) for each in StatusReader(store, RUN).read()] == [
        ("assign", "finished")
    ]


def test_a_killed_attempt_falls_silent_and_the_next_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_status, "SILENCE", 0.3)
    store, reader = ObjectStore(tmp_path), StatusReader(ObjectStore(tmp_path), RUN)
    killed = StatusReporter(store.uri(""), RUN, PRETRAIN)
    until(reader.read)
    assert reader.read()[0].alive
    killed.stop()
    until(lambda: not reader.read()[0].alive)
    assert reader.read()[0].status.state == "running"
    again = StatusReporter(store.uri(""), RUN, PRETRAIN)
    until(lambda: len(reader.read()) == 2)
    assert [each.alive for each in reader.read()] == [False, True]
    again({"event": "finish"})
    assert [each.status.state for each in reader.read()] == ["running", "finished"]


def test_reading_again_fetches_only_what_has_changed(
    either_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = ObjectStore.get

    def counted(store: ObjectStore, key: str) -> bytes:
        fetched.append(key)
        return get(store, key)

    reporters = [StatusReporter(either_store.uri(""), RUN, {**PRETRAIN, "fold": fold}) for fold in range(3)]
    for reporter in reporters:
        reporter({"event": "finish"})
    either_store.put(f"runs/{RUN}/status/other.json", b'{"step": 7}')
    monkeypatch.setattr(ObjectStore, "get", counted)
    reader = StatusReader(either_store, RUN)
    assert [len(reader.read()), len(fetched)] == [3, 4]
    StatusReporter(either_store.uri(""), RUN, PRETRAIN)({"event": "finish"})
    fetched.clear()
    assert len(reader.read()) == 4
    assert sum("pretrain" in key for key in fetched) == 1


def test_of_several_finished_attempts_the_longest_gives_the_duration(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    for pause in (0.2, 0.0):
        reporter = StatusReporter(store.uri(""), RUN, PRETRAIN)
        time.sleep(pause)
        reporter({"event": "finish"})
    StatusReporter(store.uri(""), RUN, {"step": "report"})({"event": "failed", "kind": "step", "message": "x"})
    (step,) = finished_steps(store, RUN)
    assert step.pop("seconds") >= 0.2
    assert step == PRETRAIN


def test_an_unreachable_store_neither_hides_the_failure_nor_ends_the_task(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    failing(StepError("the real one"), "s3://bucket")
    with progress.task("assign"):
        report_status("s3://bucket", RUN)
    assert capsys.readouterr().out.count("the status of this task cannot be written") == 2


def test_neither_an_outage_of_the_store_nor_a_wrong_clock_makes_an_attempt_look_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_status, "SILENCE", 0.4)
    monkeypatch.setattr(task_status, "INTERVAL", 60.0)
    store = ObjectStore(tmp_path)
    reader = StatusReader(store, RUN)
    assert reader.read() == []
    reporter = StatusReporter(store.uri(""), RUN, PRETRAIN)
    until(lambda: store.list(f"runs/{RUN}/status/"))
    (key,) = store.list(f"runs/{RUN}/status/")
    os.utime(tmp_path / key, (time.time() - 600,) * 2)  # as by a server whose clock is late
    assert reader.read()[0].alive
    time.sleep(0.6)  # nothing was read, so perhaps nothing could be written
    assert reader.read()[0].alive
    end = time.monotonic() + 10
    while reader.read()[0].alive:
        assert time.monotonic() < end, "an attempt that stays silent is lost"
        time.sleep(0.05)
    reporter.stop()


def test_the_last_report_about_a_task_from_a_pod_counts(tmp_path: Path) -> None:
    """As of several GPUs: the leader is killed, and the process that has started it reports the failure."""
    store = ObjectStore(tmp_path)
    StatusReporter(store.uri(""), RUN, PRETRAIN, {"KFP_POD_NAME": "run-1"}).stop()
    StatusReporter(store.uri(""), RUN, {**PRETRAIN, "fold": 3}, {"KFP_POD_NAME": "run-1"})({"event": "finish"})
    launcher = StatusReporter(store.uri(""), RUN, PRETRAIN, {"KFP_POD_NAME": "run-1"})
    launcher({"event": "failed", "kind": "step", "message": "a process was killed"})
    StatusReporter(store.uri(""), RUN, PRETRAIN, {"KFP_POD_NAME": "run-2"}).stop()
    found = [(each.status.fold, each.status.pod, each.status.state) for each in StatusReader(store, RUN).read()]
    assert sorted(found) == [(2, "run-1", "failed"), (2, "run-2", "running"), (3, "run-1", "finished")]
