"""New plates: the steps of a prediction by their command lines, on addresses alone, and the options they reject."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.registry.champion import promote
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.artifacts import local_copy
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.components.test_steps_by_uri import call

NEW = ("HUVEC-03", "HUVEC-04")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Lab:
    """A published run in an object store, and the options that name it."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.folder, self.store = folder, store
        self.run = FinishedRun(folder, store)
        self.model: ModelManifest = publish(store, KEY).model
        config = folder / "config.yaml"
        config.write_text(self.run.config.dump())
        self.read = ("--config", str(config))
        self.manifests = ("--screen", store.uri("o/reference.json"), "--holdout", store.uri("o/plates.json"))

    def normalize(self, *more: str) -> None:
        source = ("--source", str(self.folder / "screen"))
        call("normalize", *self.read, *source, *self.manifests, *more)

    def infer(self, fold: int = 0, *more: str) -> str:
        at = self.store.uri(f"o/{fold}")
        cell = ("--fold", str(fold), "--cell-type", "HUVEC")
        call("infer", *self.read, *self.manifests, *cell, "--logits", at, "--embeddings", f"{at}-e", *more)
        return at


@pytest.fixture
def lab(tmp_path: Path, store: ObjectStore) -> Lab:
    return Lab(tmp_path, store)


def test_from_new_plates_to_their_report_by_uri_alone(lab: Lab, tmp_path: Path) -> None:
    at, first = lab.store.uri, lab.model.fingerprint
    promote(lab.store, first, "the first")
    lab.normalize("--model", "champion", "--experiments", ", ".join(NEW))
    reference = Manifest.read(local_copy(at("o/reference.json"), tmp_path / "copies"))
    # The reference names the model itself, which stays the same if another becomes champion.
    assert reference.model is not None
    assert reference.model.address == at(f"models/{first}")
    logits = [word for fold in (0, 1) for word in ("--logits", lab.infer(fold))]
    call("ensemble", *logits, "--out", at("o/averaged"))
    call("assign", *lab.read, *lab.manifests, "--logits", at("o/averaged"), "--out", at("o/assigned"))
    call("report", *lab.read, *lab.manifests, "--uri", at("o/assigned"), "--out", at("o/report"))

    report, assigned = (local_copy(at(f"o/{name}"), tmp_path / "copies") for name in ("report", "assigned"))
    found = {row["id_code"]: row["sirna"] for row in rows(report / "predictions.csv")}
    assert found == {row["id_code"]: row["sirna"] for row in rows(assigned / "holdout.csv")}
    assert {id_code.split("_")[0] for id_code in found} == set(NEW)
    assert len(found) == 12
    assert len(rows(report / "qc.csv")) == 20
    assert json.loads((report / "lineage.json").read_text())["model"]["fingerprint"] == first


def test_rejects_options_that_do_not_fit(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--holdout-labels is missing; give a path for them, or for new plates the"):
        lab.normalize()
    with pytest.raises(InputError, match=r"^--experiments and --any-cell-type are for new plates; give the --model"):
        lab.normalize("--any-cell-type", "--holdout-labels", str(tmp_path / "labels.csv"))
    with pytest.raises(InputError, match=r"^0123456: no such model below"):
        lab.normalize("--model", "0123456")
    assert lab.store.list("o/") == []

    lab.normalize("--model", lab.model.short, "--experiments", NEW[0])
    with pytest.raises(InputError, match=r"names a model, whose networks predict; leave the weights .* out"):
        lab.infer(0, "--base", str(tmp_path))
    lab.manifests = ("--screen", str(tmp_path / "screen.json"), *lab.manifests[2:])
    with pytest.raises(
        InputError, match=r"^no networks: give trained weights, or as screen a manifest that names a mod"
    ):
        lab.infer()
    with pytest.raises(InputError, match=r"^--holdout-labels is missing; give the labels that normalize wrote, or"):
        call("report", *lab.read, *lab.manifests, "--uri", str(tmp_path), "--out", str(tmp_path / "report"))
    assert lab.store.list("o/0") == []


def test_rejects_a_configuration_that_is_not_the_models(lab: Lab) -> None:
    lab.normalize("--model", lab.model.short, "--experiments", NEW[0])
    for change in ("standardise.domain=global", "batch_norm.domain=plate", "backbones.0.stem=8"):
        part = change.split(".")[0]
        with pytest.raises(InputError, match=rf"^config: {part} is not as model {lab.model.short} was trained; give"):
            lab.infer(0, "--set", change)
    assert lab.infer(0, "--set", "predict.views=1", "--set", "backbones.0.weights=elsewhere.safetensors")
