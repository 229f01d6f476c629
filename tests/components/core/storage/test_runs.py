"""Records of runs: whole, tied to the screen they were made of, and of use to people who mistype a key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.core.config import PackConfig
from components.core.errors import InputError
from components.core.storage.manifest import Manifest, Vocabulary
from components.core.storage.runs import (
    Learned,
    PredictionRecord,
    RunRecord,
    TaskRecord,
    fetch_run,
    finished_folds,
    read_source,
    record_task,
    run_address,
    write_run,
)
from tests.tiny_screen import MemoryStore

PLATES = ("plates/a", "plates/b")
RECORD = RunRecord(key="demo-1a2b", config={"name": "demo"}, lineage={"run": "demo-1a2b", "seeds": {"run": 1}})
FILES = {"screen.json": b"screen", "holdout.json": b"holdout", "holdout_labels.csv": b"id_code,sirna\n"}


def manifest(warning: str = "", run: str = RECORD.key) -> Manifest:
    vocabulary = Vocabulary(treatments=("a",), positives=(), negatives=())
    return Manifest(
        store="s3://x", channels=6, image_size=8, codec=PackConfig(), vocabulary=vocabulary, folds={}, plates=(),
        warnings=(warning,), run=run,
    )  # fmt: skip


SCREEN, HOLDOUT = manifest("screen"), manifest("holdout")


@pytest.fixture
def written() -> MemoryStore:
    store = MemoryStore()
    write_run(store, RECORD, *FILES.values(), PLATES)
    return store


def test_a_run_reads_back_with_its_files(written: MemoryStore, tmp_path: Path) -> None:
    assert fetch_run(written, RECORD.key, tmp_path) == RECORD.model_copy(update={"plates": PLATES})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES


def test_an_unknown_run_is_refused_with_the_ones_there_are(written: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--run demo-1a: no such run .* \(runs there: demo-1a2b\)"):
        fetch_run(written, "demo-1a", tmp_path)
    with pytest.raises(InputError, match=r"there are no runs"):
        fetch_run(MemoryStore(), RECORD.key, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a run's record"),
        (b"[]", "not a run's record"),
        (b'{"key": "demo-1a2b"}', "not a run's record"),
        (json.dumps({**RECORD.model_dump(), "schema_version": 2}).encode(), "newer than this version"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(
    written: MemoryStore, tmp_path: Path, content: bytes, message: str
) -> None:
    written.put("runs/demo-1a2b/run.json", content)
    with pytest.raises(InputError, match=rf"runs/demo-1a2b/run.json: .*{message}"):
        fetch_run(written, RECORD.key, tmp_path)


PREDICTION = PredictionRecord(
    model="ab" * 32, address="s3://x/models/ab", experiments=(), any_cell_type=False, folds={"HUVEC": (0, 2)}
)


def test_a_prediction_is_refused_where_a_training_is_meant(tmp_path: Path) -> None:
    store = MemoryStore()
    write_run(store, RECORD.model_copy(update={"prediction": PREDICTION}), b"reference", b"plates", None, [])
    assert set(store.list(f"runs/{RECORD.key}/")) == {
        f"runs/{RECORD.key}/{name}.json" for name in ("run", "screen", "holdout")
    }
    said = f"demo-1a2b: is a prediction by model {'ab' * 6}, which trains nothing; give the key of a training "
    with pytest.raises(InputError, match=rf"^--run {said}"):
        fetch_run(store, RECORD.key, tmp_path)
    with pytest.raises(InputError, match=rf"^init_from: run {said}"):
        read_source(store, RECORD.key)


def test_folds_are_listed_by_cell_type_in_order(written: MemoryStore) -> None:
    for cell_type, fold in (("RPE", 10), ("HUVEC", 1), ("RPE", 2)):
        record_task(written, SCREEN, f"finished/infer/{cell_type}{fold}", "infer", fold, cell_type, holdout=HOLDOUT)
    found = finished_folds(written, RECORD.key, SCREEN, HOLDOUT)
    assert {c: [(f.fold, f.prefix) for f in folds] for c, folds in found.items()} == {
        "HUVEC": [(1, "finished/infer/HUVEC1")],
        "RPE": [(2, "finished/infer/RPE2"), (10, "finished/infer/RPE10")],
    }
    assert finished_folds(written, "demo-1", SCREEN, HOLDOUT) == {}


def test_a_later_finish_of_the_same_fold_counts(written: MemoryStore) -> None:
    for place in ("finished/infer/old", "finished/infer/new"):
        record_task(written, SCREEN, place, "infer", 0, "RPE", holdout=HOLDOUT)
    (fold,) = finished_folds(written, RECORD.key, SCREEN, HOLDOUT)["RPE"]
    assert fold.prefix == "finished/infer/new"


@pytest.mark.parametrize(("screen", "holdout"), [(manifest("other"), HOLDOUT), (SCREEN, manifest("other"))])
def test_folds_of_another_screen_do_not_count(written: MemoryStore, screen: Manifest, holdout: Manifest) -> None:
    record_task(written, SCREEN, "finished/infer/x", "infer", 0, "RPE", holdout=HOLDOUT)
    assert finished_folds(written, RECORD.key, screen, holdout) == {}


def test_a_step_by_hand_is_of_no_run(written: MemoryStore) -> None:
    before = set(written.list(""))
    record_task(written, manifest("screen", run=""), "finished/infer/x", "infer", 0, "RPE", holdout=HOLDOUT)
    assert set(written.list("")) == before


def test_the_run_is_no_part_of_what_a_screen_is() -> None:
    assert manifest("screen", run="").digest() == SCREEN.digest() != HOLDOUT.digest()


def test_a_damaged_fold_is_named(written: MemoryStore) -> None:
    written.put("runs/demo-1a2b/tasks/infer/0/RPE.json", b'{"prefix": "../x"}')
    with pytest.raises(InputError, match=r"runs/demo-1a2b/tasks/infer/0/RPE.json: damaged, not a task's record"):
        finished_folds(written, RECORD.key, SCREEN, HOLDOUT)


def test_every_task_has_a_record_of_its_own_that_names_its_outputs(written: MemoryStore) -> None:
    place = f"finished/pretrain/{1:064x}"
    record_task(written, SCREEN, place, "pretrain", 0, backbone="a", learned=Learned(experiments=("HUVEC-02",)))
    record_task(written, SCREEN, place, "pretrain", 0, backbone="b")
    record_task(written, SCREEN, place, "finetune", 0, cell_type="RPE")
    names = ("pretrain/0/a", "pretrain/0/b", "finetune/0/RPE")
    keys = {f"runs/{RECORD.key}/tasks/{name}.json" for name in names}
    assert set(written.list(f"runs/{RECORD.key}/tasks/")) == keys
    first = TaskRecord.model_validate_json(written.get(f"runs/{RECORD.key}/tasks/pretrain/0/a.json"))
    assert (first.prefix, first.screen, first.learned) == (place, SCREEN.digest(), Learned(experiments=("HUVEC-02",)))
    record_task(written, manifest("screen", run=""), place, "finetune", 1, cell_type="RPE")
    assert set(written.list(f"runs/{RECORD.key}/tasks/")) == keys


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("demo-1a2b", ("", "demo-1a2b")),
        ("s3://bucket/runs/demo-1a2b", ("s3://bucket", "demo-1a2b")),
        ("s3://bucket/team/a/runs/demo-1a2b/", ("s3://bucket/team/a", "demo-1a2b")),
    ],
)
def test_a_run_is_named_by_key_or_address(given: str, expected: tuple[str, str]) -> None:
    assert run_address(given) == expected


@pytest.mark.parametrize(
    "given", ["", "runs/demo", "s3://runs/demo", "s3://bucket/demo", "s3://bucket/runs/", "../a", "s3://b/runs/a b"]
)
def test_other_names_of_runs_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"neither a run's key nor its address, .* s3://BUCKET\[/PREFIX\]/runs/KEY"):
        run_address(given)
