"""infer as the pipeline calls it: after pretrain alone, and after finetune without pseudo-labels."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.arrays import read_logits
from components.core.storage.finished import fetch_finished
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import finished_folds
from components.finetune.step import main as finetune
from components.infer.step import main as infer
from tests.components.core.learning.tiny_networks import RUN, changed
from tests.components.pretrain.training_run import BACKBONES, TrainingRun, files


def predict(run: TrainingRun, bases: list[Path], out: Path, config: RunConfig | None = None) -> Path:
    """Predicts with the configuration of the run's manifest, or with another one."""
    infer(
        str(run.screen), str(run.holdout), [str(base) for base in bases], run.fold, run.cell_type,
        str(out / "logits"), str(out / "embeddings"), config.model_dump_json() if config else "",
    )  # fmt: skip
    return out


def embedded(out: Path, backbone: str) -> dict[str, list[float]]:
    table = pq.read_table(out / "embeddings" / backbone / "HUVEC" / "fold_0.parquet")
    return dict(zip(table["id_code"].to_pylist(), table["embedding"].to_pylist(), strict=True))


def test_pretrained_backbones_predict_in_any_order_and_outputs_are_reused(pretrained, tmp_path, capsys):
    run, store = pretrained, ObjectStore(pretrained.store)
    bases = [run.base(name) for name in BACKBONES]
    one = predict(run, bases, tmp_path / "one")
    logits = read_logits(one / "logits")
    assert {role: len(wells.ids_W) for role, wells in logits.wells.items()} == {"oof": 6, "unlabelled": 6, "holdout": 0}
    assert logits.meta["folds"] == [{"fold": 0, "validated": True}]
    assert [(r["step"], r["backbone"]) for r in logits.meta["history"]] == [
        ("pretrain", name) for name in BACKBONES for _ in range(2)
    ]
    for name in BACKBONES:
        assert len(embedded(one, name)) == 30
        table = pq.read_schema(one / "embeddings" / name / "HUVEC" / "fold_0.parquet")
        assert table.metadata[b"cellsignal.weights"] == b"pretrained"
    capsys.readouterr()
    two = predict(run, bases[::-1], tmp_path / "two")
    assert "predicting" not in capsys.readouterr().out
    assert files(one) == files(two)
    manifest = Manifest.read(run.screen)
    (fold,) = finished_folds(store, manifest.run, manifest, Manifest.read(run.holdout))["HUVEC"]
    assert fold.fold == 0
    fetch_finished(store, fold.prefix, {"logits": tmp_path / "fetched"})
    assert files(tmp_path / "fetched") == files(one / "logits")
    # Recomputed, the files are identical.
    store.delete_prefix("finished/infer")
    three = predict(run, bases[::-1], tmp_path / "three")
    assert "predicting" in capsys.readouterr().out
    assert files(one) == files(three)
    # A group of tasks leaves the backbones' weights in one folder.
    (tmp_path / "all").mkdir()
    for base in bases:
        (tmp_path / "all" / base.name).symlink_to(base)
    assert files(one) == files(predict(run, [tmp_path / "all"], tmp_path / "four"))


def test_finetuned_pairs_predict_without_pseudo_labels(pretrained, tmp_path):
    run = pretrained
    bases = [str(run.base(name)) for name in BACKBONES]
    config = changed(RUN, mean_teacher={"pseudo_labels": "none"}).model_dump_json()
    finetune(str(run.screen), bases, run.fold, run.cell_type, str(run.finetuned), config)
    assert json.loads((run.finetuned / "meta.json").read_text())["epoch"] == 3
    out = {}
    for which in ("student", "teacher"):
        chosen = changed(RUN, predict={"weights": which})
        out[which] = predict(run, [run.finetuned], tmp_path / which, chosen)
        schema = pq.read_schema(out[which] / "embeddings" / "slim" / "HUVEC" / "fold_0.parquet")
        assert schema.metadata[b"cellsignal.weights"] == which.encode()
    student, teacher = (read_logits(out[which] / "logits") for which in ("student", "teacher"))
    assert student.wells["oof"].ids_W == teacher.wells["oof"].ids_W
    assert not np.array_equal(student.wells["oof"].logits_WK, teacher.wells["oof"].logits_WK)
    assert embedded(out["student"], "slim") != embedded(out["teacher"], "slim")
    assert len([r for r in student.meta["history"] if r["step"] == "finetune"]) == 3 * len(BACKBONES)


def test_rejects_weights_that_do_not_match(pretrained, tmp_path):
    run = pretrained
    bases = [run.base(name) for name in BACKBONES]
    run.finetune()
    for given, fold, cell_type, message in (
        (
            [run.finetuned, bases[0]],
            0,
            "HUVEC",
            "pretrained-small: finetune's output holds all backbones; give it alone",
        ),
        ([bases[0], run.finetuned], 0, "HUVEC", "finetuned: not one backbone's weights"),
        (bases[:1], 0, "HUVEC", r"pretrained backbones \['small'\] do not match"),
        (bases, 1, "HUVEC", "pretrained-small: weights of fold 0, expected fold 1"),
        ([run.finetuned], 0, "RPE", "finetuned: weights of fold 0 and HUVEC, expected fold 0 and RPE"),
        ([tmp_path], 0, "RPE", r"meta\.json: cannot be read; give an output folder of pretrain or finetune"),
    ):
        run.fold, run.cell_type = fold, cell_type
        with pytest.raises(InputError, match=message):
            predict(run, given, tmp_path / "out")
    assert not (tmp_path / "out" / "logits").exists()
