"""A challenger's predictions are those of the networks that were published."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.object_store import ObjectStore
from pipelines.retrain.challenge import Challenge, RetrainRequest
from tests.components.core.registry.finished_run import KEY, FinishedRun


def test_another_runs_networks_predict_again(
    template: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = template.copy_to(ObjectStore(tmp_path / "store"))
    model = publish(run.store, KEY).model
    request = RetrainRequest(screen="screen")
    challenge = Challenge(run.config, request, run.store, [("HUVEC-04", "HUVEC")], tmp_path, Console(), 0.0)
    run.store.put(f"runs/{KEY}/results/predictions_holdout.csv", b"of the run")
    own = challenge.challengers_predictions(KEY, model, tmp_path, ["HUVEC-04"])
    assert own.read_bytes() == b"of the run"
    predicted: list[tuple[str, list[str]]] = []

    def predict(_self: Challenge, model: ModelManifest, experiments: list[str]) -> Path:
        predicted.append((model.fingerprint, list(experiments)))
        return tmp_path / "new.csv"

    monkeypatch.setattr(Challenge, "predict", predict)
    other = challenge.challengers_predictions("tiny-of-another-machine", model, tmp_path, ["HUVEC-04"])
    assert other == tmp_path / "new.csv"
    assert predicted == [(model.fingerprint, ["HUVEC-04"])]
