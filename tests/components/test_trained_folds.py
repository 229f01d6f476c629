"""A run that trains some of its folds: wells of the others have no out-of-fold prediction, and everything else is complete."""

from __future__ import annotations

import csv
import json

from components.assign.step import AssignConfig
from components.assign.step import run as assign
from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings, PretrainSettings
from components.core.storage.manifest import Manifest
from components.ensemble.step import run as ensemble
from components.infer.step import run as infer
from components.normalize.config import NormalizeConfig
from components.normalize.step import run as normalize
from components.pretrain.step import run as pretrain
from components.report.step import run as report
from tests.components.core.learning.tiny_networks import RUN, SLIM
from tests.tiny_screen import MemoryStore, TinyScreen

CONFIG = RunConfig.model_validate(
    {
        **RUN.model_dump(),
        "screen": {**RUN.screen.model_dump(), "cell_types": ["HUVEC"]},
        "folds": {"count": 3, "train": [0, 2]},
        "backbones": [SLIM.model_dump()],
        "mean_teacher": {"enabled": False},
        "embeddings": {"enabled": False},
    }
)


def test_only_trained_folds_have_out_of_fold_predictions(tmp_path):
    tiny = TinyScreen(tmp_path / "in", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04"), more=["HUVEC-04"])
    for table in ("train.csv", "train_controls.csv"):
        tiny.drop_wells(table, "RPE")
    store = MemoryStore()
    paths = screen, holdout, labels = [tmp_path / name for name in ("screen.json", "holdout.json", "labels.csv")]
    normalize(CONFIG.section(NormalizeConfig), tiny.root, store, *paths)
    manifest, held_out = Manifest.read(screen), Manifest.read(holdout)
    assert manifest.folds == {"HUVEC-01": 0, "HUVEC-02": 1, "HUVEC-04": 2}
    folds = []
    for fold in CONFIG.folds.trained:
        base, logits = tmp_path / f"base-{fold}", tmp_path / f"logits-{fold}"
        pretrain(CONFIG.section(PretrainSettings), store, manifest, fold, SLIM.name, base)
        settings = CONFIG.section(InferSettings)
        infer(settings, store, manifest, held_out, [base], fold, "HUVEC", logits, tmp_path / f"embeddings-{fold}")
        folds.append(logits)
    ensemble(folds, tmp_path / "averaged")
    assign(CONFIG.section(AssignConfig), screen, holdout, tmp_path / "averaged", tmp_path / "assigned")
    out = tmp_path / "out"
    metrics = report(CONFIG, screen, holdout, labels, None, [str(tmp_path / "assigned")], out, {}, store)
    with (out / "predictions_oof.csv").open(newline="") as file:
        predicted = [row["id_code"] for row in csv.DictReader(file)]
    assert {id_code.split("_")[0] for id_code in predicted} == {"HUVEC-01", "HUVEC-04"}
    assert len(predicted) == 12
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 2]
    assert json.loads((out / "metrics.json").read_text())["wells"]["out_of_fold"]["overall"] == 12
    with (out / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6, "the trained folds predict unlabelled wells together"
    assert "6 labelled wells of HUVEC have no out-of-fold prediction" in (out / "report.html").read_text()
