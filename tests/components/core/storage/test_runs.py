"""Records of runs: complete, tied to the screen they were made from, and rejected with one clear line if they cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.storage.manifest import Manifest, Vocabulary
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import split_address
from components.core.storage.run_records import KEY as PATTERN
from components.core.storage.run_records import RUNS, Learned, PredictionRecord, RunRecord, TaskRecord
from components.core.storage.runs import (
    fetch_results,
    fetch_run,
    finished_folds,
    read_source,
    record_results,
    record_task,
    write_run,
)
from tests.tiny_screen import MemoryStore

KEY = "demo-1a2b"
PLATES = ("plates/a", "plates/b")
RECORD = RunRecord(key=KEY, config={"name": "demo"}, lineage={"run": KEY, "seeds": {"run": 1}})
FILES = {"screen.json": b"screen", "holdout.json": b"holdout", "holdout_labels.csv": b"id_code,sirna\n"}
PREDICTION = PredictionRecord(model="ab" * 32, folds={"HUVEC": (0, 2)})


def manifest(warning: str = "", run: str = KEY) -> Manifest:
    vocabulary = Vocabulary(treatments=("a",), positives=(), negatives=())
    return Manifest(
        store="s3://x", channels=("dna",), image_shape=(8, 8), vocabulary=vocabulary, folds={}, plates=(),
        warnings=(warning,), run=run,
    )  # fmt: skip


SCREEN, HOLDOUT = manifest("screen"), manifest("holdout")


@pytest.fixture
def written() -> MemoryStore:
    store = MemoryStore()
    write_run(store, RECORD, *FILES.values(), PLATES)
    return store


def test_a_run_reads_back_with_its_files(written: MemoryStore, tmp_path: Path) -> None:
    assert written.puts[-1] == f"runs/{KEY}/run.json"
    assert fetch_run(written, KEY, tmp_path) == RECORD.model_copy(update={"plates": PLATES})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES


def test_rejects_a_newer_or_missing_record(written: MemoryStore, tmp_path: Path) -> None:
    for content in (json.dumps({**RECORD.model_dump(), "schema_version": 2}), '{"schema_version": 2, "unknown": 1}'):
        written.put(f"runs/{KEY}/run.json", content.encode())
        with pytest.raises(InputError, match=rf"runs/{KEY}/run.json: .*newer than this version"):
            fetch_run(written, KEY, tmp_path)
    with pytest.raises(InputError, match=r"--run demo-1a: no such run .*`cellsignal runs`"):
        fetch_run(written, "demo-1a", tmp_path)


def test_rejects_a_prediction_in_place_of_a_training(tmp_path: Path) -> None:
    store = MemoryStore()
    write_run(store, RECORD.model_copy(update={"prediction": PREDICTION}), b"reference", b"plates", None, [])
    assert not store.exists(f"runs/{KEY}/holdout_labels.csv")
    message = f"{KEY}: is a prediction by model {'ab' * 6}, which trains nothing; give the key of a training "
    with pytest.raises(InputError, match=rf"^--run {message}"):
        fetch_run(store, KEY, tmp_path)
    with pytest.raises(InputError, match=rf"^init_from: run {message}"):
        read_source(store, KEY)


def test_finished_folds_are_those_of_the_same_screen_in_order(written: MemoryStore) -> None:
    for cell_type, fold, prefix in (("RPE", 10, "a"), ("HUVEC", 1, "old"), ("HUVEC", 1, "new"), ("RPE", 2, "b")):
        record_task(
            written, SCREEN, f"finished/infer/{prefix}", "infer", fold=fold, cell_type=cell_type, holdout=HOLDOUT
        )
    found = finished_folds(written, KEY, SCREEN, HOLDOUT)
    assert {c: [(f.fold, f.prefix) for f in folds] for c, folds in found.items()} == {
        "HUVEC": [(1, "finished/infer/new")],
        "RPE": [(2, "finished/infer/b"), (10, "finished/infer/a")],
    }
    assert finished_folds(written, "demo-1", SCREEN, HOLDOUT) == {}
    assert finished_folds(written, KEY, manifest("other"), HOLDOUT) == {}
    assert finished_folds(written, KEY, SCREEN, manifest("other")) == {}
    written.put(f"runs/{KEY}/tasks/infer/2/RPE.json", b'{"prefix": "../x"}')
    with pytest.raises(InputError, match=rf"runs/{KEY}/tasks/infer/2/RPE.json: damaged, not a task's record"):
        finished_folds(written, KEY, SCREEN, HOLDOUT)


def test_every_task_of_a_run_has_its_own_record(written: MemoryStore) -> None:
    prefix, learned = f"finished/pretrain/{1:064x}", Learned(experiments=("HUVEC-02",))
    record_task(written, SCREEN, prefix, "pretrain", fold=0, backbone="a", learned=learned)
    record_task(written, SCREEN, prefix, "pretrain", fold=0, backbone="b")
    record_task(written, SCREEN, prefix, "finetune", fold=0, cell_type="RPE")
    record_task(written, manifest("screen", run=""), prefix, "finetune", fold=1, cell_type="RPE")  # a step by hand
    names = ("pretrain/0/a", "pretrain/0/b", "finetune/0/RPE")
    assert set(written.list(f"runs/{KEY}/tasks/")) == {f"runs/{KEY}/tasks/{name}.json" for name in names}
    first = TaskRecord.load(written, f"runs/{KEY}/tasks/pretrain/0/a.json")
    assert (first.prefix, first.screen, first.learned) == (prefix, SCREEN.digest(), learned)
    assert manifest("screen", run="").digest() == SCREEN.digest() != HOLDOUT.digest()


def test_a_run_is_named_by_key_or_address_and_by_nothing_else() -> None:
    for text, store in ((KEY, ""), (f"file:///data/team/runs/{KEY}/", "file:///data/team")):
        assert split_address(text, RUNS, PATTERN, "a run's key", "KEY") == (store, KEY)
    for text in ("", "runs/demo", "s3://runs/demo", "s3://bucket/demo", "s3://bucket/runs/", "../a", "s3://b/runs/a b"):
        with pytest.raises(InputError, match=r"neither a run's key nor its address, .* s3://BUCKET.*/runs/KEY"):
            read_source(MemoryStore(), text)


def test_results_come_back_complete_or_not_at_all(either_store: ObjectStore, tmp_path: Path) -> None:
    made, back = tmp_path / "made", tmp_path / "back"
    for folder in (made, back):
        folder.mkdir()
    (made / "lineage.json").write_text("{}")
    (made / "report.html").write_bytes(b"<html>\xff")
    record_results(either_store, KEY, made)
    assert fetch_results(either_store, KEY, back) == ["lineage.json", "report.html"]
    assert (back / "report.html").read_bytes() == b"<html>\xff"
    either_store.delete(f"runs/{KEY}/results/lineage.json")  # as while a later attempt writes
    with pytest.raises(InputError, match=f"the results of run {KEY} are not there"):
        fetch_results(either_store, KEY, back)
