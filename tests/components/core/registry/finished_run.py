"""A finished run of the tiny screen as the registry finds it in a store: real manifests, networks that were never trained."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from components.core.config import RunConfig
from components.core.learning.network import Classifier
from components.core.learning.weight_files import save_weights
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.finished import run_once
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned
from components.core.storage.runs import record_task
from components.normalize.step import main as normalize
from tests.components.core.learning.tiny_networks import RUN
from tests.tiny_screen import CONFIG, LABELLED, UNLABELLED, TinyScreen

Kind = Literal["pseudo_label", "finetune", "pretrain"]
KEY = "tiny-0123456789ab"
CELL_TYPES = ("HUVEC", "RPE")
SCORES = {
    "out_of_fold": {
        "raw": {"overall": 0.5, "HUVEC": 0.25, "RPE": 0.75},
        "group": {"overall": 0.6, "HUVEC": 0.5, "RPE": 0.7},
        "assigned": {"overall": 0.9, "HUVEC": 0.8, "RPE": 1.0},
    },
    "holdout": {
        stage: {"overall": value, "HUVEC": value} for stage, value in (("raw", 0.4), ("group", 0.45), ("assigned", 0.7))
    },
}
METRICS = {
    "schema": 1, **SCORES, "folds": [], "throughput": {},
    "wells": {"out_of_fold": {"overall": 24, "HUVEC": 12, "RPE": 12}, "holdout": {"overall": 6, "HUVEC": 6}},
    "temperatures": {name: {"raw": 1.5, "group": 1.25, "balanced": 0.5} for name in CELL_TYPES},
}  # fmt: skip
TEACHING = {"pseudo_label": {}, "finetune": {"pseudo_labels": "none"}, "pretrain": {"enabled": False}}


class FinishedRun:
    """Writes a run into a store: two cell types, two folds, two backbones; HUVEC-04 is held out."""

    def __init__(
        self,
        folder: Path,
        store: ObjectStore,
        kind: Kind = "pseudo_label",
        key: str = KEY,
        weights: str = "student",
        **config: Any,
    ) -> None:
        self.folder, self.store, self.kind, self.key = folder, store, kind, key
        own = {
            "screen": {**CONFIG.screen.model_dump(), "holdout_experiments": ("HUVEC-04",)},
            "mean_teacher": {**RUN.mean_teacher.model_dump(), **TEACHING[kind]},
            "predict": {**RUN.predict.model_dump(), "weights": weights},
        }
        given = {**RUN.model_dump(), "name": "tiny", "store": {"bucket": store.uri("")}, **own, **config}
        self.config = RunConfig.model_validate(given)
        source = folder / "screen"
        if not source.exists():
            imaged = (*LABELLED, *UNLABELLED, "RPE-02", "HUVEC-04")
            TinyScreen(source, imaged, more=("RPE-02", "HUVEC-04"))
        paths = [str(folder / name) for name in ("screen.json", "holdout.json", "labels.csv")]
        lineage = json.dumps({"run": key, "code_version": "0.1.0 (sources 0123456789abcdef)", "screen": "/data/tiny"})
        normalize(self.config.model_dump_json(), str(source), *paths, lineage=lineage)
        self.screen, self.holdout = (Manifest.read(Path(path)) for path in paths[:2])
        for fold in (0, 1):
            for backbone in self.config.backbones:
                self.pretrain(fold, backbone.name)
            for cell_type in CELL_TYPES:
                self.train(cell_type, fold)
        self.report()

    def copy_to(self, store: ObjectStore) -> FinishedRun:
        """The same run in another store, where its manifests still have the address of the first."""
        store.put_many((key, self.store.get(key)) for key in self.store.list(""))
        other = copy.copy(self)
        other.store = store
        return other

    def network(self, seed: int, backbone: int = 0, **changes: Any) -> Classifier:
        """An untrained network of the run's own architecture, or of another one."""
        torch.manual_seed(seed)
        config = self.config.backbones[backbone].model_copy(update=changes)
        return Classifier(config, self.config.head, len(self.screen.vocabulary.classes), 6, 16, len(CELL_TYPES))

    def seed(self, fold: int, cell_type: str, backbone: int, role: str) -> int:
        """The seed of the network that predicts."""
        parts = (fold, cell_type if self.kind != "pretrain" else "", backbone, role)
        return sum(ord(letter) * 31**n for n, letter in enumerate(repr(parts))) % 2**31

    def pretrain(self, fold: int, name: str) -> None:
        number = [backbone.name for backbone in self.config.backbones].index(name)
        training = tuple(experiment for experiment, own in self.screen.folds.items() if own != fold)

        def work(out: Mapping[str, Path]) -> None:
            network = self.network(self.seed(fold, "", number, "pretrained"), number)
            save_weights(network, out["weights"] / "weights.safetensors")

        self._once("pretrain", fold, work, backbone=name, learned=Learned(experiments=training))

    def train(self, cell_type: str, fold: int) -> None:
        """The steps after pretrain, and the fold's record."""

        def pairs(out: Mapping[str, Path]) -> None:
            for number, backbone in enumerate(self.config.backbones):
                for role in ("student", "teacher"):
                    network = self.network(self.seed(fold, cell_type, number, role), number)
                    save_weights(network, out["weights"] / f"{backbone.name}.{role}.safetensors")

        def logits(out: Mapping[str, Path]) -> None:
            out["weights"].mkdir()  # in place of logits, which publishing does not read

        if self.kind == "pseudo_label":
            self._once("pseudo_label", fold, pairs, cell_type=cell_type, holdout=self.holdout)
            return
        if self.kind == "finetune":
            self._once("finetune", fold, pairs, cell_type=cell_type)
        self._once("infer", fold, logits, cell_type=cell_type, holdout=self.holdout)

    def report(self, **changes: Any) -> None:
        """Writes results under the run's key; `changes` go into metrics.json."""
        prefix = f"runs/{self.key}/results"
        self.store.put(f"{prefix}/metrics.json", json.dumps({**METRICS, **changes}).encode())
        lineage = {"run": self.key, "manifest_digest": self.screen.digest()}
        self.store.put(f"{prefix}/lineage.json", json.dumps(lineage).encode())

    def _once(self, step: str, fold: int, work: Any, **record: Any) -> None:
        """A step's output, and the record of its task."""
        name = f"{record.get('cell_type') or record['backbone']}{fold}"
        out = self.folder / "work" / self.key / step / name / "weights"
        inputs = {"key": self.key, "name": name, "kind": self.kind}
        prefix = run_once(self.store, step, inputs, {"weights": out}, work)
        record_task(self.store, self.screen, prefix, step, fold=fold, **record)


@functools.cache
def _only_run(folder: Path) -> FinishedRun:
    (folder / "finished-run" / "store").mkdir(parents=True)
    return FinishedRun(folder / "finished-run", ObjectStore(folder / "finished-run" / "store"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run that tests copy and never change; one for all folders of tests that import this fixture."""
    return _only_run(tmp_path_factory.getbasetemp())


@functools.cache
def _published_run(base: Path, template: FinishedRun) -> FinishedRun:
    run = template.copy_to(ObjectStore(base / "published-run"))
    assert publish(run.store, KEY).new
    return run


@pytest.fixture(scope="session")
def published(template: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A published run that tests never change; one for all folders of tests that import this fixture."""
    return _published_run(tmp_path_factory.getbasetemp(), template)


@pytest.fixture(scope="session")
def model(published: FinishedRun) -> ModelManifest:
    """The model of the published run."""
    return publish(published.store, KEY).model
