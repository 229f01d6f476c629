"""The DAG of a prediction as KFP sees it: nothing of training in it, a loop a cell type, and each step fed by the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.core.config import RunConfig
from pipelines.prediction import build_prediction
from pipelines.run.prediction_checks import task_counts

FOLDS = {"HUVEC": [0, 1, 2], "RPE": [1]}


def tasks(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tasks outside of the loops by name, and the loops with their only task."""
    file = folder / "prediction.yaml"
    compiler.Compiler().compile(build_prediction(RunConfig.load("demo"), FOLDS), str(file))
    spec = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    root = spec["root"]["dag"]["tasks"]
    loops = {name: task for name, task in root.items() if "parameterIterator" in task}
    inside = {}
    for name, task in loops.items():
        ((own, of_loop),) = spec["components"][task["componentRef"]["name"]]["dag"]["tasks"].items()
        inside[name] = (own, of_loop, task["parameterIterator"]["items"]["raw"])
    return {name: task for name, task in root.items() if name not in loops}, inside


def test_there_is_a_loop_of_the_cell_types_own_folds_and_no_training(tmp_path: Path) -> None:
    outside, loops = tasks(tmp_path)
    found = {
        task["inputs"]["parameters"]["cell_type"]["runtimeValue"]["constant"]: yaml.safe_load(items)
        for _, task, items in loops.values()
    }
    assert found == {name: [{"fold": fold} for fold in folds] for name, folds in FOLDS.items()}
    assert all(own.startswith("infer-new-plates") for own, _, _ in loops.values())
    steps = sorted(name.rstrip("-0123456789") for name in outside)
    assert steps == ["assign", "assign", "ensemble", "ensemble", "normalize-new-plates", "report-new-plates"]
    assert task_counts(FOLDS) == {"normalize": 1, "infer": 4, "ensemble": 2, "assign": 2, "report": 1}


def test_assign_reads_the_reference_as_the_screen_and_the_new_plates_as_held_out(tmp_path: Path) -> None:
    outside, _ = tasks(tmp_path)
    for name, task in outside.items():
        if name.startswith("assign"):
            given = {key: value["taskOutputArtifact"] for key, value in task["inputs"]["artifacts"].items()}
            assert given["screen"] == {"outputArtifactKey": "reference", "producerTask": "normalize-new-plates"}
            assert given["holdout"] == {"outputArtifactKey": "plates", "producerTask": "normalize-new-plates"}
            assert given["logits"]["producerTask"].startswith("ensemble")
