"""Bad input of `cellsignal predict`: one line, and nothing left behind. test_local predicts with a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.screen.screen_source import ScreenDirectory
from components.core.storage.object_store import ObjectStore
from pipelines.run.predict_request import CheckedPrediction, PredictRequest, check_prediction
from tests.components.core.registry.finished_run import FinishedRun
from tests.pipelines.tiny_run import Cellsignal


class Lab:
    """A store with a published model of random networks, the screen that it learned, and the command."""

    def __init__(self, published: FinishedRun, model: ModelManifest, cellsignal: Cellsignal) -> None:
        self.store = published.copy_to(ObjectStore(cellsignal.folder / "store")).store
        self.model, self.cellsignal, self.out = model, cellsignal, cellsignal.folder / "out"
        self.usual = {"--screen": published.folder / "screen", "--model": self.address(model.short), "--out": self.out}

    def address(self, name: str) -> str:
        return self.store.uri(f"models/{name}")

    def everything(self) -> dict[str, bytes]:
        return {key: self.store.get(key) for key in self.store.list("")}

    def refused(self, *more: str) -> str:
        given = [word for name, value in self.usual.items() if name not in more for word in (name, value)]
        before = self.everything()
        line = self.cellsignal.refused("predict", *given, *more)
        assert not self.out.exists()
        assert self.everything() == before
        return line

    def spoil_manifest(self, **changes: Any) -> None:
        key = f"models/{self.model.fingerprint}/manifest.json"
        self.store.put(key, json.dumps({**json.loads(self.store.get(key)), **changes}).encode())


@pytest.fixture
def lab(published: FinishedRun, model: ModelManifest, cellsignal: Cellsignal) -> Lab:
    return Lab(published, model, cellsignal)


WRONG = [
    (["--model", "MODELS/champion"], "no model has been promoted yet; promote one with `cellsignal models promote`"),
    (["--model", "MODELS/00000000"], "no such model below"),
    (["--experiments", "HUVEC-77"], "there is no experiment 'HUVEC-77'; there are HUVEC-01, HUVEC-02"),
    (["--set", "standardise.domain=global"], "--set standardise.domain=global: standardise.domain is part of the model"),
    (["--set", "predict.weights=teacher"], "predict.weights is part of the model"),
    (["--screen", "nowhere"], "--screen nowhere: no such folder"),
    (["--truth", "truth.csv"], "field id_code is 'HUVEC-03_1_B99'; it is not a treatment well of these plates: remove the row"),
]  # fmt: skip


def test_rejects_a_wrong_option_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("id_code,sirna\nHUVEC-03_1_B99,sirna_7\n")
    for more, message in WRONG:
        assert message in lab.refused(*[word.replace("MODELS", lab.store.uri("models")) for word in more])
    lab.store.put("models/champion.json", b"{}")
    assert "damaged, not a champion's record" in lab.refused("--model", lab.address("champion"))


SPOILED = {
    "a newer schema": (lambda lab, _: lab.spoil_manifest(schema_version=99), "schema 99, newer than"),
    "no manifest": (lambda lab, _: lab.store.put(f"models/{lab.model.fingerprint}/manifest.json", b"{"), "damaged, not a model's"),
    "a missing network": (lambda lab, key: lab.store.delete(key), "is missing, so that model"),
    "images of another size": (lambda lab, _: lab.spoil_manifest(image_shape=(32, 32)), "expected 32x32 pixels, found 16x16"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_rejects_a_spoiled_model_and_leaves_nothing(lab: Lab, how: str) -> None:
    spoil, message = SPOILED[how]
    spoil(lab, lab.model.key(lab.model.networks[0].path))
    assert message in lab.refused("--experiments", "HUVEC-03")


def test_new_plates_are_read_in_their_own_layout_unless_one_is_given(lab: Lab) -> None:
    config = lab.model.run_config().changed(["screen.layout=samplesheet"], "test")
    lab.spoil_manifest(config=json.loads(config.model_dump_json()))
    source, truth = ScreenDirectory(lab.usual["--screen"]), None

    def checked(*changes: str) -> CheckedPrediction:
        request = PredictRequest(lab.address(lab.model.short), changes=changes, experiments=("HUVEC-03",))
        return check_prediction(request, request.store(), lab.store, source, truth)

    found = checked()
    assert (found.config.screen.layout, len(found.screen.plates)) == ("auto", 2), "the Kaggle layout is found"
    assert checked("screen.layout=kaggle").config.screen.layout == "kaggle"
    with pytest.raises(InputError, match=r"samplesheet\.csv: cannot be read"):
        checked("screen.layout=samplesheet")


@pytest.mark.slow
def test_rejects_a_damaged_network_once_it_is_read(lab: Lab) -> None:
    lab.store.put(lab.model.key(lab.model.networks[0].path), b"x")

    def kept() -> dict[str, bytes]:
        return {key: data for key, data in lab.everything().items() if key.startswith(("models/", "runs/"))}

    before, usual = kept(), [word for option in lab.usual.items() for word in option]
    line = lab.cellsignal.refused("predict", *usual, "--experiments", "HUVEC-03")
    assert f"`cellsignal models publish {lab.model.run} --repair`" in line
    assert not lab.out.exists()
    assert kept() == before
