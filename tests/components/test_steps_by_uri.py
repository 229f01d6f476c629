"""Every step with s3:// addresses, one after the other, as `cellsignal jobs` runs them, on a real object store."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.artifacts import UNFINISHED, local_copy
from components.core.storage.object_store import ObjectStore
from tests.pipelines.tiny_run import CONFIG
from tests.tiny_screen import TinyScreen


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


def test_from_a_screen_to_its_report_by_uri_alone(tmp_path: Path, store: ObjectStore, config: str):
    tiny = TinyScreen(tmp_path / "screen", imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03"))
    for table in ("train.csv", "train_controls.csv"):
        tiny.drop_wells(table, "RPE")
    for file in tiny.root.rglob("*"):
        if file.is_file():
            store.upload_file(file, f"input/{file.relative_to(tiny.root).as_posix()}")
    at, read = store.uri, ("--config", config)
    manifests = ("--screen", at("o/screen.json"), "--holdout", at("o/holdout.json"))
    labels = ("--holdout-labels", at("o/labels.csv"))
    call("normalize", *read, "--source", at("input"), *manifests, *labels)
    logits = []
    for fold in ("0", "1"):
        here, one = f"o/{fold}", ("--fold", fold)
        cell = (*one, "--cell-type", "HUVEC")
        call("pretrain", *read, *manifests[:2], *one, "--backbone", "tiny", "--weights", at(f"{here}/pretrained"))
        base = ("--base", at(f"{here}/pretrained"))
        call("finetune", *read, *manifests[:2], *base, *cell, "--weights", at(f"{here}/tuned"))
        base = ("--base", at(f"{here}/tuned"))
        results = ("--logits", at(f"{here}/logits"), "--embeddings", at(f"{here}/e"))
        call("pseudo_label", *read, *manifests, *base, *cell, "--weights", at(f"{here}/weights"), *results)
        logits += ["--logits", at(f"{here}/logits")]
    call("ensemble", *logits, "--out", at("o/averaged"))
    call("assign", *read, *manifests, "--logits", at("o/averaged"), "--out", at("o/assigned"))
    call("report", *read, *manifests, *labels, "--uri", at("o/assigned"), "--out", at("o/report"))

    report = local_copy(at("o/report"), tmp_path / "copies")
    wells = (tiny.root / "test.csv").read_text().splitlines()[1:]
    predicted = (report / "predictions.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in predicted} == {row.split(",")[0] for row in wells}
    assert {fold["fold"] for fold in json.loads((report / "metrics.json").read_text())["folds"]} == {0, 1}
    assert [key for key in store.list("o/") if UNFINISHED in key] == []

    # infer is another end of the same chain.
    cell = ("--fold", "0", "--cell-type", "HUVEC")
    results = ("--logits", at("o/inferred"), "--embeddings", at("o/inferred-e"))
    call("infer", *read, *manifests, "--base", at("o/0/tuned"), *cell, *results)
    assert {key.rpartition("/")[2] for key in store.list("o/inferred/")} == {"logits.npz", "meta.json"}


def test_bad_input_names_the_address_and_leaves_nothing(store: ObjectStore, config: str):
    store.put("o/screen.json", b"{}")
    arguments = ("--config", config, "--screen", store.uri("o/screen.json"), "--fold", "0", "--backbone", "tiny")
    with pytest.raises(InputError, match=rf"^{store.uri('o/screen.json')}: damaged, not a screen manifest"):
        call("pretrain", *arguments, "--weights", store.uri("o/weights"))
    assert store.list("o/") == ["o/screen.json"]


def test_a_simulated_screen_goes_to_a_bucket(store: ObjectStore, config: str):
    call("simulate", "--config", config, "--set", "simulate.treatments_per_group=2", "--out", store.uri("simulated"))
    there = store.list("simulated/")
    assert {"simulated/screen/train.csv", "simulated/truth.csv"} <= set(there)
    assert sum(key.endswith(".png") for key in there) > 0
