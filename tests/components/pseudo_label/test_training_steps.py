"""normalize, pretrain, finetune and pseudo_label as the pipeline calls them, in a folder store."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from components.core.errors import InputError
from components.core.progress import EVENTS_VARIABLE
from components.core.storage.arrays import read_logits
from components.core.storage.finished import fetch_finished
from components.core.storage.garbage import find_garbage, list_groups, needed_by
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import finished_folds, read_runs
from tests.components.core.learning.tiny_networks import changed
from tests.components.pretrain.training_run import BACKBONES, TrainingRun, epochs_trained, files
from tests.tiny_screen import PLATES, TREATED_WELLS, TREATMENTS, TinyScreen


def ids(experiment: str) -> tuple[str, ...]:
    return tuple(f"{experiment}_{plate}_{well}" for plate in PLATES for well in TREATED_WELLS)


def test_trains_from_plates_to_logits_and_reuses_finished_outputs(
    tiny: TinyScreen, tmp_path: Path, folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
):
    store, events = folder_store, tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    run, other = (TrainingRun(tmp_path / name, store.uri("")) for name in ("run", "other"))
    run.normalize(tiny.root, "tiny-1")
    run.train()
    trained = epochs_trained(events)
    assert trained == 2 * 2 + 2 * 1 + 2 * 2, "two backbones: two epochs of pretraining, three cycles of one epoch"

    pairs = {f"{name}.{role}.safetensors" for name in BACKBONES for role in ("student", "teacher")}
    assert set(files(run.finetuned)) == {*pairs, "history.json", "meta.json"}
    assert set(files(run.weights)) == {*pairs, "history.json", "meta.json", "pseudo_labels.csv"}
    meta = json.loads((run.weights / "meta.json").read_text())
    assert meta["epoch"] == 3
    assert meta["refreshes"][0] == 1
    before = json.loads((run.finetuned / "meta.json").read_text())
    assert all(meta["steps"][name] == 3 * before["steps"][name] > 0 for name in BACKBONES), "steps run on"

    manifest = Manifest.read(run.screen)
    (fold,) = finished_folds(store, "tiny-1", manifest, Manifest.read(run.holdout))["HUVEC"]
    fetch_finished(store, fold.prefix, {"logits": tmp_path / "fetched"})
    assert (fold.fold, files(tmp_path / "fetched")) == (0, files(run.logits))
    logits = read_logits(run.logits)
    assert logits.wells["oof"].ids_W == ids("HUVEC-01")
    assert logits.wells["unlabelled"].ids_W == ids("HUVEC-03")
    assert logits.wells["holdout"].ids_W == ()
    for role in ("oof", "unlabelled", "holdout"):
        assert logits.wells[role].logits_WK.shape == (len(logits.wells[role].ids_W), len(manifest.vocabulary.classes))
    assert logits.cell_type == "HUVEC"
    assert logits.meta["folds"] == [{"fold": 0, "validated": True}]
    steps = [(r["step"], r["backbone"], r["epoch"]) for r in logits.meta["history"]]
    assert steps == (
        [("pretrain", name, epoch) for name in BACKBONES for epoch in (1, 2)]
        + [("finetune", name, 1) for name in BACKBONES]
        + [("pseudo_label", name, epoch) for epoch in (2, 3) for name in BACKBONES]
    )

    assert set(files(run.embeddings)) == {f"{name}/HUVEC/fold_0.parquet" for name in BACKBONES}
    for name in BACKBONES:
        table = pq.read_table(run.embeddings / name / "HUVEC" / "fold_0.parquet")
        assert table.schema.metadata[b"cellsignal.weights"] == b"student"
        assert table.num_rows == 3 * len(PLATES) * (len(TREATED_WELLS) + 2), "controls as well"

    rows = pd.read_csv(run.weights / "pseudo_labels.csv")
    assert sorted(rows["id_code"]) == sorted([*ids("HUVEC-01"), *ids("HUVEC-03")])
    assert set(rows["sirna"]) <= {*TREATMENTS[1], *TREATMENTS[2]}
    assert rows["confidence"].between(0, 1, inclusive="right").all()

    # The same inputs again are fetched, also to other paths: no epoch is trained, and every byte is the same.
    made = {key.removesuffix("/done.json") for key in store.list("finished/") if key.endswith("/done.json")}
    other.normalize(tiny.root, "tiny-2")
    other.train()
    assert epochs_trained(events) == trained
    for folder in ("finetuned", "weights", "logits", "embeddings"):
        assert files(other.out / folder) == files(run.out / folder)
    # Both runs are recorded, and need all that is in the store.
    recorded = read_runs(store)
    assert {each.key for each in recorded} == {"tiny-1", "tiny-2"}
    for each in recorded:
        assert each.needs == {*made, *each.record.plates}
        assert [len(each.tasks), len(each.record.plates)] == [4, 8]
    assert find_garbage(list_groups(store), needed_by(recorded), datetime.now(UTC)) == []


def test_sphering_changes_without_training(pretrained: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, events = pretrained, tmp_path / "events.jsonl"
    run.finetune()

    def outputs(**embeddings: object) -> list[dict[str, bytes]]:
        run.config = changed(run.config, embeddings=embeddings)
        run.pseudo_label()
        return [files(folder) for folder in (run.weights, run.logits, run.embeddings)]

    first = outputs(sphering="controls", shrinkage=0.1)
    store, key = ObjectStore(run.store), Manifest.read(run.screen).run
    recorded = next(each for each in read_runs(store) if each.key == key)
    (task,) = (task for task in recorded.tasks if task.step == "pseudo_label")
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    other, plain = outputs(sphering="controls", shrinkage=0.2), outputs(sphering="none", shrinkage=0.0)
    assert outputs(sphering="controls", shrinkage=0.1) == first
    assert epochs_trained(events) == 0
    assert first[:2] == other[:2] == plain[:2]
    assert first[2].keys() == other[2].keys() == plain[2].keys()
    assert all(len({first[2][name], other[2][name], plain[2][name]}) == 3 for name in plain[2])
    # Garbage collection leaves what others are made from, to a run that has only sphered ones as well.
    for prefix, expected in ((task.prefix, plain[2]), (task.prefix_of("embeddings"), first[2])):
        fetch_finished(store, prefix, {"embeddings": tmp_path / prefix})
        assert files(tmp_path / prefix) == expected
    assert {task.prefix, task.sphered} <= recorded.needs
    stored = store.list(f"{task.sphered}/")
    assert len(stored) == 1 + len(first[2])  # neither weights nor logits again


def test_a_fold_without_validation_wells_of_a_cell_type_still_predicts(pretrained: TrainingRun):
    run = pretrained
    run.fold, run.cell_type = 1, "RPE"
    run.train()
    logits = read_logits(run.logits)
    assert logits.meta["folds"] == [{"fold": 1, "validated": False}]
    assert {role: len(wells.ids_W) for role, wells in logits.wells.items()} == {"oof": 0, "unlabelled": 0, "holdout": 0}
    assert (run.weights / "pseudo_labels.csv").read_text().split() == ["id_code,sirna,confidence"]


def test_a_further_round_trains_on_an_earlier_runs_predictions_and_on_no_weights_of_another_fold(
    pretrained: TrainingRun, tmp_path: Path
):
    run = pretrained
    run.finetune()
    # Weights of another fold or cell type may have learned the labels that this fold validates on.
    for fold, cell_type in ((1, "HUVEC"), (0, "RPE")):
        run.fold, run.cell_type = fold, cell_type
        message = f"finetuned: weights of fold 0 and HUVEC, expected fold {fold} and {cell_type}"
        with pytest.raises(InputError, match=message):
            run.pseudo_label()
    assert not run.weights.exists()
    assert not run.logits.exists()
    run.fold, run.cell_type = 0, "HUVEC"
    labels_of = dict(zip(ids("HUVEC-03"), [*TREATMENTS[2], *TREATMENTS[1]], strict=True))
    table = tmp_path / "predictions.csv"
    rows = [
        f"{id_code},{perturbation},{0.9 - 0.1 * k:.1f}" for k, (id_code, perturbation) in enumerate(labels_of.items())
    ]
    table.write_text("\n".join(["id_code,sirna,confidence", *rows]) + "\n")
    run.config = changed(run.config, mean_teacher={"fused_labels": str(table)})
    run.pseudo_label()
    labels = pd.read_csv(run.weights / "pseudo_labels.csv", index_col="id_code")
    given = labels.loc[list(labels_of)]
    assert given["sirna"].to_dict() == labels_of
    assert given["confidence"].tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert set(labels.index) - set(labels_of) == set(ids("HUVEC-01")), "validation wells keep their own"


def test_steps_that_diverge_end_with_bad_input_and_store_nothing(pretrained: TrainingRun):
    store, sane = ObjectStore(pretrained.config.store.address), pretrained.config
    diverging = changed(sane, mean_teacher={"learning_rate": 1e30})
    for step, outputs in (
        (pretrained.finetune, [pretrained.finetuned]),
        (pretrained.pseudo_label, [pretrained.weights, pretrained.logits, pretrained.embeddings]),
    ):
        pretrained.config, before = diverging, set(store.list("finished/"))
        with pytest.raises(InputError, match=r"epoch \d of \d: .* not finite.*lower mean_teacher\.learning_rate"):
            step()
        assert set(store.list("finished/")) == before
        assert not any(path.exists() for path in outputs)
        pretrained.config = sane
        step()
        assert all(path.exists() for path in outputs)
