"""The leakage rules of a comparison: no experiment that a model was trained on; predictions of the published networks."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned
from pipelines.retrain.challenge import Challenge, Comparable, RetrainRequest, comparable, same_images
from tests.components.core.registry.finished_run import KEY, FinishedRun

HOLDOUT = {"HUVEC-04": "HUVEC"}


def test_experiments_trained_on_under_another_name_are_left_out(template: FinishedRun) -> None:
    trained = template.screen.plates
    assert same_images(template.holdout, trained, "the champion") == {}
    first, *others = template.holdout.plates
    twin = next(plate for plate in template.screen.plates if plate.experiment == "HUVEC-02")
    plates = (first.model_copy(update={"histograms": twin.histograms}), *others)
    found = same_images(template.holdout.model_copy(update={"plates": plates}), trained, "the champion")
    assert Comparable(("HUVEC-04",), ("RPE-09 is left out: why",)).without(found) == Comparable(
        (), ("RPE-09 is left out: why", "HUVEC-04 is left out: the champion was trained on the same images as HUVEC-02")
    )


def test_only_experiments_that_neither_model_saw_and_both_know_are_compared(model: ModelManifest) -> None:
    holdout = {name: name.split("-")[0] for name in ("HUVEC-04", "HUVEC-01", "HUVEC-03", "U2OS-01", "RPE-07")}
    found = comparable(holdout, {"champion": model})
    assert found.experiments == ("HUVEC-04", "RPE-07")
    assert [remark.partition(":")[0] for remark in found.remarks] == [
        "HUVEC-01 is left out", "HUVEC-03 is left out", "U2OS-01 is left out",
    ]  # fmt: skip
    assert found.remarks[1] == f"HUVEC-03 is left out: the champion {model.short} was trained with it"  # its images
    assert found.remarks[2] == f"U2OS-01 is left out: the champion {model.short} does not know U2OS"
    learned = Learned(experiments=("RPE-07",), wells=("HUVEC-04_1_B03",))
    challenger = model.model_copy(update={"taught": learned})
    assert comparable(holdout, {"champion": model, "challenger": challenger}).experiments == ()


def test_experiments_of_untrained_folds_count_as_seen(template: FinishedRun, model: ModelManifest) -> None:
    """Their labels taught no network, but they selected checkpoints and are in the plate design."""
    taught = Learned(experiments=tuple(name for name, fold in template.screen.folds.items() if fold != 0))
    partial = model.model_copy(update={"folds": {"HUVEC": (0,), "RPE": (0,)}, "taught": taught})
    of_fold_0 = {name: name.partition("-")[0] for name, fold in template.screen.folds.items() if fold == 0}
    assert of_fold_0
    assert comparable(of_fold_0, {"champion": partial}).experiments == ()


def test_a_challenger_that_another_run_trained_predicts_again(
    template: FinishedRun, model: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, request = ObjectStore(tmp_path / "store"), RetrainRequest(endpoint="", screen="screen")
    challenge = Challenge(template.config, request, store, HOLDOUT, tmp_path, Console(), 0.0)
    store.put(f"runs/{KEY}/results/predictions_holdout.csv", b"of the run")
    own = challenge.predictions_of_challenger(KEY, model, tmp_path, ["HUVEC-04"])
    assert own.read_bytes() == b"of the run"
    predicted: list[tuple[str, list[str]]] = []

    def predict(_self: Challenge, model: ModelManifest, experiments: list[str]) -> Path:
        predicted.append((model.fingerprint, list(experiments)))
        return tmp_path / "new.csv"

    monkeypatch.setattr(Challenge, "predict", predict)
    other = challenge.predictions_of_challenger("tiny-of-another-machine", model, tmp_path, ["HUVEC-04"])
    assert other == tmp_path / "new.csv"
    assert predicted == [(model.fingerprint, ["HUVEC-04"])]


def test_a_finished_run_of_an_earlier_attempt_is_reused_while_the_store_has_its_results(
    template: FinishedRun, model: ModelManifest, tmp_path: Path
) -> None:
    store, request = ObjectStore(tmp_path / "store"), RetrainRequest(endpoint="", screen="nowhere")
    config = template.config.model_copy(
        update={"store": template.config.store.model_copy(update={"bucket": store.uri("")})}
    )
    challenge, out = (
        Challenge(config, request, store, HOLDOUT, tmp_path, Console(), 0.0),
        tmp_path / f"predictions-{model.short}",
    )
    out.mkdir()
    (out / "lineage.json").write_text('{"run": "tiny-1"}')
    with pytest.raises(InputError, match="--screen nowhere: no such folder"):
        challenge.predict(model, ["HUVEC-04"])
    store.put("runs/tiny-1/results/lineage.json", b"{}")
    assert challenge.predict(model, ["HUVEC-04"]) == out / "predictions.csv"
