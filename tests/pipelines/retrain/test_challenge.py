"""The leakage rules of a comparison: no experiment that a model was trained on; predictions of the published networks."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned
from pipelines.retrain.challenge import Challenge, Comparable, RetrainRequest, comparable, same_images
from pipelines.run.predict_request import PredictRequest
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
    learned = Learned(experiments=("RPE-07",), wells={"HUVEC-04": ("HUVEC-04_1_B03",)})
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
    holdout = {**HOLDOUT, "HUVEC-01": "HUVEC", "RPE-07": "RPE"}  # it was trained on HUVEC-01
    challenge = Challenge(template.config, request, store, holdout, tmp_path, Console(), 0.0)
    store.put(f"runs/{KEY}/results/predictions_holdout.csv", b"of the run")
    assert challenge.predictions_of_challenger(KEY, model, tmp_path).read_bytes() == b"of the run"
    predicted: list[PredictRequest] = []
    monkeypatch.setattr("pipelines.run.local.predict_here", lambda request, *_, **__: predicted.append(request))
    path = challenge.predictions_of_challenger("tiny-of-another-machine", model, tmp_path)
    assert path == tmp_path / f"predictions-{model.short}" / "predictions.csv"
    ((address, experiments),) = ((each.model, each.experiments) for each in predicted)
    assert address.endswith(model.fingerprint)
    assert experiments == ("HUVEC-04", "RPE-07")  # all that any champion may be compared on


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
    results = "runs/tiny-1/results/lineage.json"
    for lineage in (b'{"run": "tiny-1", "partial": {"quorum": 1}}', b'{"run": "tiny-2"}', b"[]", None):
        store.put(results, lineage) if lineage else store.delete(results)
        with pytest.raises(InputError, match="--screen nowhere: no such folder"):
            challenge.predict(model)
    store.put(results, b'{"run": "tiny-1"}')
    assert challenge.predict(model) == out / "predictions.csv"


def test_a_finished_run_with_damaged_outputs_is_run_again_and_published(
    template: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, console = template.copy_to(ObjectStore(tmp_path / "store")), Console(file=io.StringIO(), width=400)
    request = RetrainRequest(endpoint="", screen="screen")
    challenge = Challenge(template.config, request, run.store, HOLDOUT, tmp_path, console, 0.0)
    out = tmp_path / "challenger"
    out.mkdir()
    (out / "lineage.json").write_bytes(run.store.get(f"runs/{KEY}/results/lineage.json"))
    network = next(key for key in run.store.list("finished/") if key.endswith("student.safetensors"))
    whole = run.store.get(network)
    run.store.put(network, b"damaged")

    def run_here(*_: object, **__: object) -> None:
        run.store.put(network, whole)

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.run.local.run_here", run_here)
        key, model = challenge.train()
    assert (key, model.run) == (KEY, KEY)
    assert "the finished outputs are damaged" in console.file.getvalue()  # type: ignore[attr-defined]
    monkeypatch.setattr("pipelines.run.local.run_here", lambda *_, **__: pytest.fail("was run again"))
    assert challenge.train() == (KEY, model)
