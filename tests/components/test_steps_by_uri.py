"""Every step with s3:// addresses, one after the other, as `cellsignal jobs` runs them, on a real object store."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.registry.champion import promote
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.artifacts import UNFINISHED, local_copy
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.tiny_run import CONFIG
from tests.tiny_screen import TinyScreen

NEW = ("HUVEC-03", "HUVEC-04")


def call(step: str, *arguments: str) -> None:
    """The step's command line in this process: one start of torch for all of them."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"components.{step}.__main__"), step)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(function)
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)


@pytest.fixture
def config(tmp_path: Path, store: ObjectStore) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"{CONFIG}store: {{bucket: {store.bucket}, prefix: {store.prefix}}}\n")
    RunConfig.load(str(file))
    return str(file)


def test_from_a_screen_to_its_report_by_uri_alone_with_two_folds_of_three(
    tmp_path: Path, store: ObjectStore, config: str
):
    imaged = ("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04")
    tiny = TinyScreen(tmp_path / "screen", imaged=imaged, more=["HUVEC-04"])
    for table in ("train.csv", "train_controls.csv"):
        tiny.drop_wells(table, "RPE")
    files = (file for file in tiny.root.rglob("*") if file.is_file())
    store.put_many((f"input/{file.relative_to(tiny.root).as_posix()}", file.read_bytes()) for file in files)
    at, read = store.uri, ("--config", config, "--set", "folds.count=3", "--set", "folds.train=[0, 2]")
    manifests = ("--screen", at("o/screen.json"), "--holdout", at("o/holdout.json"))
    labels = ("--holdout-labels", at("o/labels.csv"))
    call("normalize", *read, "--source", at("input"), *manifests, *labels)
    logits = []
    for fold in ("0", "2"):
        here, cell = f"o/{fold}", ("--fold", fold, "--cell-type", "HUVEC")
        call("pretrain", *read, *manifests[:2], *cell[:2], "--backbone", "tiny", "--weights", at(f"{here}/pretrained"))
        base, results = (
            ("--base", at(f"{here}/pretrained")),
            ("--logits", at(f"{here}/logits"), "--embeddings", at(f"{here}/e")),
        )
        if fold == "2":  # the other end of the chain
            call("infer", *read, *manifests, *base, *cell, *results)
        else:
            call("finetune", *read, *manifests[:2], *base, *cell, "--weights", at(f"{here}/tuned"))
            weights = ("--base", at(f"{here}/tuned"), "--weights", at(f"{here}/weights"))
            call("pseudo_label", *read, *manifests, *weights, *cell, *results)
        logits += results[:2]
    call("ensemble", *logits, "--out", at("o/averaged"))
    call("assign", *read, *manifests, "--logits", at("o/averaged"), "--out", at("o/assigned"))
    call("report", *read, *manifests, *labels, "--uri", at("o/assigned"), "--out", at("o/report"))

    report, metrics = local_copy(at("o/report"), tmp_path / "copies"), json.loads(store.get("o/report/metrics.json"))
    tables = [tiny.root / "test.csv", report / "predictions.csv", report / "predictions_oof.csv"]
    wells, predicted, out_of_fold = (pd.read_csv(table)["id_code"] for table in tables)
    assert set(predicted) == set(wells), "the trained folds predict unlabelled wells together"
    assert set(out_of_fold.str.split("_").str[0]) == {"HUVEC-01", "HUVEC-04"}
    assert len(out_of_fold) == metrics["wells"]["out_of_fold"]["overall"] == 12
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 2]
    assert "6 labelled wells of HUVEC have no out-of-fold prediction" in (report / "report.html").read_text()
    assert [key for key in store.list("o/") if UNFINISHED in key] == []


def test_bad_input_names_the_address_and_leaves_nothing(store: ObjectStore, config: str):
    store.put("o/screen.json", b"{}")
    arguments = ("--config", config, "--screen", store.uri("o/screen.json"), "--fold", "0", "--backbone", "tiny")
    with pytest.raises(InputError, match=rf"^{store.uri('o/screen.json')}: damaged, not a screen manifest"):
        call("pretrain", *arguments, "--weights", store.uri("o/weights"))
    assert store.list("o/") == ["o/screen.json"]


def test_a_simulated_screen_with_changed_settings_goes_to_a_bucket(store: ObjectStore, config: str):
    small = ("treatments_per_group=2", "positive_controls=1", "labelled.HUVEC=1")
    changes = [word for each in small for word in ("--set", f"simulate.{each}")] + ["--set", "seed=4"]
    call("simulate", "--config", config, *changes, "--out", store.uri("simulated"))
    assert json.loads(store.get("simulated/simulation.json"))["seed"] == 4
    there = store.list("simulated/")
    assert {"simulated/screen/train.csv", "simulated/truth.csv"} <= set(there)
    assert sum(key.endswith(".png") for key in there) > 0


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
    found, expected = (pd.read_csv(path) for path in (report / "predictions.csv", assigned / "holdout.csv"))
    assert found["id_code"].equals(expected["id_code"])
    assert found["sirna"].equals(expected["perturbation"])
    assert set(found["id_code"].str.split("_").str[0]) == set(NEW)
    assert (len(found), len(pd.read_csv(report / "qc.csv"))) == (12, 20)
    assert json.loads((report / "lineage.json").read_text())["model"]["fingerprint"] == first


def test_rejects_options_and_configurations_that_do_not_fit(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--holdout-labels is missing; give a path for them, or for new plates the"):
        lab.normalize()
    with pytest.raises(InputError, match=r"^--experiments and --any-cell-type are for new plates; give the --model"):
        lab.normalize("--any-cell-type", "--holdout-labels", str(tmp_path / "labels.csv"))
    with pytest.raises(InputError, match=r"^0123456: no such model below"):
        lab.normalize("--model", "0123456")
    assert lab.store.list("o/") == []

    lab.normalize("--model", lab.model.short, "--experiments", NEW[0])
    for change in ("standardise.domain=global", "batch_norm.domain=plate", "backbones.0.stem=8"):
        part = change.split(".")[0]
        with pytest.raises(InputError, match=rf"^config: {part} is not as model {lab.model.short} was trained; give"):
            lab.infer(0, "--set", change)
    with pytest.raises(InputError, match=r"names a model, whose networks predict; leave the weights .* out"):
        lab.infer(0, "--base", str(tmp_path))
    assert lab.store.list("o/0") == []
    lab.infer(0, "--set", "predict.views=1", "--set", "backbones.0.weights=elsewhere.safetensors")
    assert lab.store.list("o/0/")
    lab.manifests = ("--screen", str(tmp_path / "screen.json"), *lab.manifests[2:])
    with pytest.raises(InputError, match=r"^no networks: give trained weights, or as screen a manifest that names a"):
        lab.infer()
    with pytest.raises(InputError, match=r"^--holdout-labels is missing; give the labels that normalize wrote, or"):
        call("report", *lab.read, *lab.manifests, "--uri", str(tmp_path), "--out", str(tmp_path / "report"))
