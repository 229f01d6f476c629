"""Bad input of `cellsignal predict`: one line, and nothing left behind. test_local predicts with a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.core.learning.weight_files import save_weights
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.digests import digest_file
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.tiny_run import Cellsignal


def everything(store: ObjectStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("")}


@pytest.fixture
def lab(tmp_path: Path) -> FinishedRun:
    """A run with random networks, in a store of its own."""
    (tmp_path / "store").mkdir()
    return FinishedRun(tmp_path, ObjectStore(tmp_path / "store"))


@pytest.fixture
def model(lab: FinishedRun) -> ModelManifest:
    return publish(lab.store, KEY).model


def address(lab: FinishedRun, name: str = "champion") -> str:
    return lab.store.uri(f"models/{name}")


WRONG = [
    (["--model", "MODELS/champion"], "no model has been promoted yet; promote one with `cellsignal models promote`"),
    (["--model", "MODELS/00000000"], "no such model below"),
    (["--experiments", "HUVEC-77"], "there is no experiment 'HUVEC-77'; there are HUVEC-01, HUVEC-02"),
    (["--set", "standardise.domain=global"], "--set standardise.domain=global: standardise.domain is part of the model"),
    (["--set", "predict.weights=teacher"], "predict.weights is part of the model"),
    (["--screen", "nowhere"], "--screen nowhere: no such folder"),
    (["--truth", "truth.csv"], "field id_code is 'HUVEC-03_1_B99'; it is not a treatment well of these plates: remove the row"),
]  # fmt: skip


def test_rejects_a_wrong_option_and_leaves_nothing(
    cellsignal: Cellsignal, lab: FinishedRun, model: ModelManifest, tmp_path: Path
) -> None:
    (tmp_path / "truth.csv").write_text("id_code,sirna\nHUVEC-03_1_B99,sirna_7\n")
    before = everything(lab.store)
    usual = {"--screen": str(tmp_path / "screen"), "--model": address(lab, model.short), "--out": str(tmp_path / "out")}
    for more, message in WRONG:
        given = [word for name, value in usual.items() if name not in more for word in (name, value)]
        more = [word.replace("MODELS", lab.store.uri("models")) for word in more]
        assert message in cellsignal.refused("predict", *given, *more)
    lab.store.put("models/champion.json", b"{}")
    usual["--model"] = address(lab)
    line = cellsignal.refused("predict", *[word for option in usual.items() for word in option])
    assert "damaged, not a champion's record" in line
    lab.store.delete("models/champion.json")
    assert not (tmp_path / "out").exists()
    assert everything(lab.store) == before


def spoil_manifest(lab: FinishedRun, model: ModelManifest, **changes: Any) -> None:
    key = f"models/{model.fingerprint}/manifest.json"
    lab.store.put(key, json.dumps({**json.loads(lab.store.get(key)), **changes}).encode())


def other_architecture(lab: FinishedRun, model: ModelManifest, tmp_path: Path) -> None:
    """The network of another backbone, with a manifest that fits the file."""
    network = model.networks[0]
    save_weights(lab.network(1, 0, stem=8), tmp_path / "other.safetensors")
    lab.store.put(model.key(network.path), (tmp_path / "other.safetensors").read_bytes())
    changed = network.model_copy(
        update={
            "sha256": digest_file(tmp_path / "other.safetensors"),
            "size": (tmp_path / "other.safetensors").stat().st_size,
        }
    )
    networks = [json.loads(each.model_dump_json()) for each in (changed, *model.networks[1:])]
    spoil_manifest(lab, model, networks=networks)


SPOILED = {
    "a newer schema": (lambda lab, model, _: spoil_manifest(lab, model, schema_version=99), "schema 99, newer than"),
    "no manifest": (
        lambda lab, model, _: lab.store.put(f"models/{model.fingerprint}/manifest.json", b"{"), "damaged, not a model's manifest",
    ),
    "a missing network": (lambda lab, model, _: lab.store.delete(model.key(model.networks[0].path)), "is missing, so that model"),
    "a damaged network": (
        lambda lab, model, _: lab.store.put(model.key(model.networks[0].path), b"x"),
        "`cellsignal models publish tiny-0123456789ab --anew`",
    ),
    "another architecture": (other_architecture, "another architecture"),
    "other channels": (lambda lab, model, _: spoil_manifest(lab, model, channels=5), "channels"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_rejects_a_spoiled_model_and_leaves_nothing(
    cellsignal: Cellsignal, lab: FinishedRun, model: ModelManifest, tmp_path: Path, how: str
) -> None:
    spoil, message = SPOILED[how]
    spoil(lab, model, tmp_path)
    before = {key: data for key, data in everything(lab.store).items() if key.startswith(("models/", "runs/"))}
    line = cellsignal.refused(
        "predict", "--screen", tmp_path / "screen", "--model", address(lab, model.short), "--out", tmp_path / "out",
        "--experiments", "HUVEC-03",
    )  # fmt: skip
    assert message in line
    assert not (tmp_path / "out").exists()
    assert {key: data for key, data in everything(lab.store).items() if key.startswith(("models/", "runs/"))} == before
