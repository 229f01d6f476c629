"""How a run ended, under its key: what a failed task said, and a report's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.core import progress
from components.core.errors import InputError, StepError
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_outcome import (
    FailureRecord,
    failure_keys,
    failures_at,
    fetch_results,
    forget_failures,
    record_results,
    report_failures,
)

KEY = "tiny-0123456789ab"


def read_failures(store: ObjectStore | FolderStore, run: str) -> list[FailureRecord]:
    return failures_at(store, failure_keys(store, run))


def failing(error: Exception, address: str, run: str, step: str, **labels: Any) -> None:
    """A task that fails once its run is known; its own error comes through."""

    def task() -> None:
        with progress.task(step, **labels):
            report_failures(address, run)
            raise error

    with pytest.raises(type(error)) as raised:
        task()
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InputError("train.csv row 7: no such well"), "input", "train.csv row 7: no such well"),
        (StepError("disk full"), "step", "disk full"),
        (RuntimeError("CUDA error:\n  lost"), "step", "RuntimeError: CUDA error: lost"),
    ],
)
def test_a_failed_task_is_recorded_with_its_labels(
    either_store: ObjectStore | FolderStore, error: Exception, kind: str, message: str
):
    failing(error, either_store.uri(""), KEY, "pretrain", fold=2, backbone="xception", cell_type=None)
    (record,) = read_failures(either_store, KEY)
    assert (record.task, record.kind, record.message) == ("pretrain fold 2 xception", kind, message)
    forget_failures(either_store, KEY)
    assert read_failures(either_store, KEY) == []


def test_what_is_no_record_or_has_gone_since_it_was_listed_is_left_out(either_store: ObjectStore | FolderStore):
    failing(StepError("disk full"), either_store.uri(""), KEY, "pretrain")
    (key,) = failure_keys(either_store, KEY)
    either_store.put(f"runs/{KEY}/failed/other.json", b'{"step": 7}')
    keys = [*failure_keys(either_store, KEY), f"runs/{KEY}/failed/gone.json"]
    assert [record.message for record in failures_at(either_store, keys)] == ["disk full"]
    assert key in keys


def test_neither_success_nor_a_step_by_hand_nor_the_next_task_leaves_a_record(tmp_path: Path):
    store = FolderStore(tmp_path)
    with progress.task("assign"):
        report_failures(store.uri(""), KEY)
    failing(StepError("by hand"), store.uri(""), "", "assign")
    with pytest.raises(StepError), progress.task("ensemble"):
        raise StepError("of the task before, this is none")
    assert read_failures(store, KEY) == []


def test_a_store_that_is_gone_does_not_hide_the_failure(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    failing(StepError("the real one"), "s3://bucket", KEY, "pretrain", fold=0)
    assert "could not be recorded" in capsys.readouterr().out


def test_results_come_back_as_they_were_and_whole(either_store: ObjectStore | FolderStore, tmp_path: Path):
    made, back = tmp_path / "made", tmp_path / "back"
    made.mkdir()
    back.mkdir()
    (made / "lineage.json").write_text("{}")
    (made / "report.html").write_bytes(b"<html>\xff")
    record_results(either_store, KEY, made)
    assert fetch_results(either_store, KEY, back) == ["lineage.json", "report.html"]
    assert (back / "report.html").read_bytes() == b"<html>\xff"
    either_store.delete(f"runs/{KEY}/results/lineage.json")  # as while a later attempt writes
    with pytest.raises(InputError, match="the results of run tiny-0123456789ab are not there"):
        fetch_results(either_store, KEY, back)
