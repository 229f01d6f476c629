"""Publishing a run: every kind of training, completely or not at all, once, and refused if something is missing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.core.config import PriorConfig, StandardiseConfig
from components.core.errors import InputError, StepError
from components.core.prior.plate_groups import labelled_treatments, learn_groups
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.new_plates import design_of, groups_of, reference_of
from components.core.registry.published_models import download_networks, read_file, read_model, trained_plates
from components.core.registry.publishing import model_fingerprint, publish
from components.core.screen.histograms import domain_statistics
from components.core.storage.object_store import ObjectStore
from tests.components.core.learning.tiny_networks import weights_of
from tests.components.core.registry.finished_run import CELL_TYPES, KEY, METRICS, SCORES, FinishedRun, Kind

Spoil = Callable[[FinishedRun], object]


def below_models(store: Any) -> list[str]:
    return [key.partition("/")[2] for key in store.list("models/")]


@pytest.mark.parametrize(
    ("kind", "role"), [("pseudo_label", "student"), ("finetune", "teacher"), ("pretrain", "pretrained")]
)
def test_networks_are_restored_bit_for_bit(template: FinishedRun, tmp_path: Path, kind: Kind, role: str) -> None:
    store = ObjectStore(tmp_path / "store")
    if kind == template.kind:
        run = template.copy_to(store)
    else:
        run = FinishedRun(tmp_path, store, kind, weights="student" if role == "pretrained" else role)
    model = publish(store, KEY).model
    assert model.predicted_by == role
    assert len(model.networks) == (4 if kind == "pretrain" else 8)
    for fold, cell_type in itertools.product((0, 1), CELL_TYPES):
        files = download_networks(store, model, fold, cell_type, tmp_path / "here")
        assert list(files) == [backbone.name for backbone in run.config.backbones]
        for number, path in enumerate(files.values()):
            expected = weights_of(run.network(run.seed(fold, cell_type, number, role), number))
            found = load_file(str(path))
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)


def complete(store: ObjectStore, model: ModelManifest, folder: Path) -> bool:
    """Downloads and checks every file of a model; an incomplete one raises."""
    for file in model.files:
        read_file(store, model, file.path)
    for fold, cell_type in itertools.product((0, 1), CELL_TYPES):
        download_networks(store, model, fold, cell_type, folder)
    return read_model(store, model.fingerprint) == model


def test_publish_repairs_a_model(run_in_either: FinishedRun, tmp_path: Path) -> None:
    store = run_in_either.store
    first = publish(store, KEY).model
    store.delete(first.key(first.networks[0].path))
    assert not publish(store, KEY).new, "the manifest is there"
    with pytest.raises(InputError, match=f"`cellsignal models publish {KEY} --repair`"):
        complete(store, first, tmp_path / "damaged")
    again = publish(store, KEY, replace=True)
    assert again.new
    assert (again.model.fingerprint, again.model.attempt == first.attempt) == (first.fingerprint, False)
    assert complete(store, again.model, tmp_path / "repaired")
    assert [file.sha256 for file in again.model.networks] == [file.sha256 for file in first.networks]
    store.put(f"models/{first.fingerprint}/manifest.json", b"{")
    assert publish(store, KEY, replace=True).new, "a damaged manifest is replaced, too"


def test_the_manifest_describes_data_and_scores(published: FinishedRun, model: ModelManifest) -> None:
    assert model.run_config() == published.config
    assert model.folds == dict.fromkeys(CELL_TYPES, (0, 1))
    assert model.taught.experiments == ("HUVEC-01", "HUVEC-02", "RPE-01", "RPE-02")
    assert (model.unlabelled, model.held_out) == (("HUVEC-03",), ("HUVEC-04",))
    assert (model.scores, model.temperatures) == (SCORES, METRICS["temperatures"])


def test_plate_design_and_statistics_are_restored(published: FinishedRun, model: ModelManifest) -> None:
    screen, design, plates = published.screen, model.design, trained_plates(published.store, model)
    assert design is not None
    treatments = screen.vocabulary.treatments
    expected = learn_groups(labelled_treatments(screen.plates), treatments)
    found = groups_of(design, treatments)
    assert (found.plates, found.arrangements) == (expected.plates, expected.arrangements)
    assert all(np.array_equal(a, b) for a, b in zip(found.members, expected.members, strict=True))
    reference = reference_of(model, plates, "a", "s")
    for domain in ("global", "cell_type", "plate"):
        known, again = (
            domain_statistics(manifest, StandardiseConfig(domain=domain)) for manifest in (screen, reference)
        )
        assert known.keys() == again.keys()
        assert all(np.array_equal(known[plate], again[plate]) for plate in known)
    assert design_of(screen, PriorConfig(enabled=False)) is None


def test_the_card_has_scores_limits_and_a_licence_that_is_not_in_the_fingerprint(
    run: FinishedRun, published: FinishedRun, model: ModelManifest
) -> None:
    card = read_file(published.store, model, "card.md").decode()
    for part in (
        "| out of fold | raw | 50.0 | 25.0 | 75.0 | 24 |",
        "unlabelled (transductive): not scored.",
        "labels learned from: HUVEC-01, HUVEC-02, RPE-01, RPE-02",
        "not stated (`card.data_licence` in the configuration)",
        "held out: HUVEC-04",
    ):
        assert part in card
    store, path = run.store, f"runs/{KEY}/run.json"
    record = json.loads(store.get(path))
    record["config"]["card"]["data_licence"] = "CC BY 4.0"
    store.put(path, json.dumps(record).encode())
    licensed = publish(store, KEY).model
    assert licensed.fingerprint == model.fingerprint
    assert "## Licence of the data\n\nCC BY 4.0" in read_file(store, licensed, "card.md").decode()


def test_a_failed_publisher_leaves_nothing(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    store = run.store
    upload, calls = ObjectStore.upload_file, []

    def failing(self: ObjectStore, path: Path, key: str) -> None:
        calls.append(key)
        if len(calls) == 5:
            raise StepError("the disk is full")
        upload(self, path, key)

    monkeypatch.setattr(ObjectStore, "upload_file", failing)
    with pytest.raises(StepError, match="the disk is full"):
        publish(store, KEY)
    assert len(calls) == 5
    assert below_models(store) == []
    assert publish(store, KEY).new


def test_a_repair_that_another_overtakes_leaves_the_others_files(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, upload, others = run.store, ObjectStore.upload_file, []
    first = publish(store, KEY).model

    def overtaken(self: ObjectStore, path: Path, key: str) -> None:
        upload(self, path, key)
        monkeypatch.undo()
        others.append(publish(store, KEY, replace=True).model)

    monkeypatch.setattr(ObjectStore, "upload_file", overtaken)
    late = publish(store, KEY, replace=True)
    assert (late.new, late.model) == (False, others[0])
    assert complete(store, late.model, tmp_path / "here")
    assert {key.split("/")[1] for key in below_models(store)} == {"manifest.json", first.attempt, others[0].attempt}


def test_of_concurrent_publishers_one_leaves_its_files(run_in_either: FinishedRun, tmp_path: Path) -> None:
    store = run_in_either.store
    with ThreadPoolExecutor(3) as pool:
        published = list(pool.map(lambda _: publish(store, KEY), range(3)))
    assert sum(each.new for each in published) == 1
    assert len({each.model.attempt for each in published}) == 1
    model = published[0].model
    expected = {f"{model.fingerprint}/manifest.json"}
    expected |= {model.key(file.path).partition("/")[2] for file in (*model.files, *model.networks)}
    assert set(below_models(store)) == expected
    assert complete(store, model, tmp_path / "here")


def test_the_fingerprint_covers_only_what_determines_the_model(run: FinishedRun) -> None:
    config, folds = run.config, {"HUVEC": (0, 1)}

    def of(**changes: Any) -> str:
        inputs = {"config": config, "screen": "a", "holdout": "b", "code_version": "1 (sources 12ab)", "folds": folds}
        return model_fingerprint(**{**inputs, **changes})

    assert of() == of(code_version="2 (commit 77, sources 12ab)", folds={"HUVEC": (1, 0)})
    assert of() == of(config=config.model_copy(update={"local": config.local.model_copy(update={"threads": 7})}))
    others = [of(screen="c"), of(holdout="c"), of(code_version="1 (sources 12ac)"), of(folds={"HUVEC": (0,)}),
              of(config=config.model_copy(update={"seed": 4}))]  # fmt: skip
    assert len({of(), *others}) == 6


PARTIAL = {"quorum": 1, "folds": {"HUVEC": [0, 1], "RPE": [0]}, "missing": {"HUVEC": [], "RPE": [1]}}


def lose_scored_fold(run: FinishedRun) -> None:
    run.store.delete(f"runs/{KEY}/tasks/pseudo_label/1/HUVEC.json")
    run.report(partial=PARTIAL)


def damage_weights(run: FinishedRun) -> None:
    for key in run.store.list("finished/pseudo_label/"):
        if key.endswith("small.student.safetensors"):
            run.store.put(key, b"x")


def changed(path: str, content: bytes | None = None) -> Spoil:
    """Replaces a file of the run's records, or deletes it."""

    def spoil(run: FinishedRun) -> None:
        run.store.delete_prefix(f"runs/{KEY}/{path}")
        if content:
            run.store.put(f"runs/{KEY}/{path}", content)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed("results/"), f"run {KEY} has no report yet; run it again to its end, or end it with `cellsignal"),
        (changed("results/lineage.json", b'{"manifest_digest": "earlier"}'), "the report is of an earlier screen"),
        (changed("results/metrics.json", b"[1"), f"damaged; run {KEY} again to its end"),
        (changed("tasks/pseudo_label/1/RPE.json"), "fold 1 of RPE has no networks for the run's present screen"),
        (lose_scored_fold, f"run {KEY}: fold 1 of HUVEC has no networks for the run's present screen"),
        (changed("tasks/pretrain/1/slim.json"), "fold 1 of slim has no networks for the run's present screen"),
        (lambda run: run.store.delete_prefix("finished/pseudo_label/"), "the finished outputs are gone"),
        (damage_weights, "the finished outputs are damaged"),
    ],
)
def test_rejects_an_incomplete_run_and_publishes_nothing(run: FinishedRun, spoil: Spoil, message: str) -> None:
    spoil(run)
    with pytest.raises(InputError) as raised:
        publish(run.store, KEY)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert below_models(run.store) == []


@pytest.mark.parametrize("later", [False, True], ids=["missing", "trained after the report"])
def test_a_partial_run_is_published_with_the_folds_that_were_scored(
    run: FinishedRun, tmp_path: Path, later: bool
) -> None:
    if not later:
        run.store.delete(f"runs/{KEY}/tasks/pseudo_label/1/RPE.json")
    run.report(partial=PARTIAL)
    model = publish(run.store, KEY).model
    assert model.partial
    assert model.folds == {"HUVEC": (0, 1), "RPE": (0,)}
    assert list(download_networks(run.store, model, 0, "RPE", tmp_path / "here")) == ["small", "slim"]
    assert download_networks(run.store, model, 1, "RPE", tmp_path / "here") == {}
    assert "(others of the run are missing)" in read_file(run.store, model, "card.md").decode()
    run.report()
    if later:
        assert publish(run.store, KEY).model.fingerprint != model.fingerprint
