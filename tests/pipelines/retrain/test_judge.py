"""The leakage rules: experiments that a model saw, also under another name, decide nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.run_records import Learned
from pipelines.retrain.judge import Comparable, Judge, comparable
from pipelines.retrain.runs import RetrainRequest, Runs
from tests.components.core.registry.finished_run import KEY, FinishedRun

HELD_OUT = Comparable(("HUVEC-04",), ("RPE-09 is left out: so",))


@pytest.fixture(scope="module")
def model(lab: FinishedRun) -> ModelManifest:
    return publish(lab.store, KEY).model


def judge(lab: FinishedRun, model: ModelManifest) -> Judge:
    runs = Runs(lab.config, RetrainRequest(screen="screen"), lab.folder / "out", Console(), 0.0)
    return Judge(lab.config, lab.store, runs, KEY, model, [("HUVEC-04", "HUVEC")], allowed=False)


def test_experiments_trained_on_under_another_name_are_left_out(lab: FinishedRun, model: ModelManifest) -> None:
    found = judge(lab, model).without_twins(lab.holdout, model, HELD_OUT)
    assert found == HELD_OUT
    first, *others = lab.holdout.plates
    twin = next(plate for plate in lab.screen.plates if plate.experiment == "HUVEC-02")
    renamed = lab.holdout.model_copy(
        update={"plates": (first.model_copy(update={"histograms": twin.histograms}), *others)}
    )
    found = judge(lab, model).without_twins(renamed, model, HELD_OUT)
    assert found.experiments == ()
    assert found.remarks == (
        *HELD_OUT.remarks,
        f"HUVEC-04 is left out: the champion {model.short} was trained on the same images as HUVEC-02",
    )


def test_the_challengers_predictions_are_those_of_the_published_networks(
    lab: FinishedRun, model: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.store.put(f"runs/{KEY}/results/predictions_holdout.csv", b"of the run")
    own = judge(lab, model).challengers_predictions(tmp_path, ["HUVEC-04"])
    assert own.read_bytes() == b"of the run"
    asked: list[tuple[str, list[str]]] = []

    def predict(_self: Runs, _store: object, model: ModelManifest, experiments: list[str]) -> Path:
        asked.append((model.fingerprint, list(experiments)))
        return tmp_path / "anew.csv"

    monkeypatch.setattr(Runs, "predict", predict)
    other = replace(judge(lab, model), run="tiny-of-another-machine")
    assert other.challengers_predictions(tmp_path, ["HUVEC-04"]) == tmp_path / "anew.csv"
    assert asked == [(model.fingerprint, ["HUVEC-04"])]


def test_only_experiments_are_compared_that_neither_model_saw_and_both_know(model: ModelManifest) -> None:
    holdout = [
        ("HUVEC-04", "HUVEC"),
        ("HUVEC-01", "HUVEC"),
        ("HUVEC-03", "HUVEC"),
        ("U2OS-01", "U2OS"),
        ("RPE-07", "RPE"),
    ]
    found = comparable(holdout, model)
    assert found.experiments == ("HUVEC-04", "RPE-07")
    assert [remark.partition(":")[0] for remark in found.remarks] == [
        "HUVEC-01 is left out", "HUVEC-03 is left out", "U2OS-01 is left out",
    ]  # fmt: skip
    assert found.remarks[1] == f"HUVEC-03 is left out: the champion {model.short} was trained with it"  # its images
    assert found.remarks[2] == f"U2OS-01 is left out: the champion {model.short} does not know U2OS"
    learned = Learned(experiments=("RPE-07",), wells=("HUVEC-04_1_B03",))
    challenger = model.model_copy(update={"taught": learned})
    both = comparable(holdout, model, challenger)
    assert both.experiments == ()


def test_experiments_of_untrained_folds_count_as_seen(lab: FinishedRun, model: ModelManifest) -> None:
    """Its labels taught no network, but they selected checkpoints and are in the plate design."""
    of_fold_1 = Learned(experiments=tuple(name for name, fold in lab.screen.folds.items() if fold != 0))
    partial = model.model_copy(update={"folds": {"HUVEC": (0,), "RPE": (0,)}, "taught": of_fold_1})
    left = [(name, name.partition("-")[0]) for name, fold in lab.screen.folds.items() if fold == 0]
    assert left
    assert comparable(left, partial).experiments == ()
