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

from components.core.config import HeadConfig, RunConfig
from components.core.learning.network import Classifier
from components.core.learning.weight_files import save_weights
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.finished import run_once
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned
from components.core.storage.runs import record_task
from components.normalize.config import NormalizeConfig
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
        code: str = "0.1.0 (sources 0123456789abcdef)",
        **config: Any,
    ) -> None:
        self.folder, self.store, self.kind, self.key = folder, store, kind, key
        self.config = RunConfig.model_validate(
            {
                **RUN.model_dump(),
                "name": "tiny",
                "screen": {**CONFIG.screen.model_dump(), "holdout_experiments": ("HUVEC-04",)},
                "mean_teacher": {**RUN.mean_teacher.model_dump(), **TEACHING[kind]},
                "predict": {**RUN.predict.model_dump(), "weights": weights},
                "store": {"bucket": store.uri("")},
                **config,
            }
        )
        source = folder / "screen"
        if not source.exists():
            imaged = (*LABELLED, *UNLABELLED, "RPE-02", "HUVEC-04")
            TinyScreen(source, imaged, more=("RPE-02", "HUVEC-04"))
        paths = [str(folder / name) for name in ("screen.json", "holdout.json", "labels.csv")]
        lineage = json.dumps({"run": key, "code_version": code, "screen": "/data/tiny"})
        section = self.config.section(NormalizeConfig).model_dump_json()
        normalize(section, str(source), *paths, whole_config=self.config.model_dump_json(), lineage=lineage)
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
        return Classifier(config, HeadConfig(), len(self.screen.vocabulary.classes), 6, 16)

    def seed(self, fold: int, cell_type: str, backbone: int, role: str) -> int:
        """The seed of the network that predicts."""
        return hash_of(fold, cell_type if self.kind != "pretrain" else "", backbone, role)

    def pretrain(self, fold: int, name: str) -> None:
        number = [backbone.name for backbone in self.config.backbones].index(name)

        def work(out: Mapping[str, Path]) -> None:
            save_weights(
                self.network(self.seed(fold, "", number, "pretrained"), number), out["weights"] / "weights.safetensors"
            )

        training = [experiment for experiment, own in self.screen.folds.items() if own != fold]
        self._once("pretrain", f"{fold}{name}", work, lambda prefix: record_task(
            self.store, self.screen, prefix, "pretrain", fold, backbone=name, learned=Learned(experiments=tuple(training))
        ))  # fmt: skip

    def train(self, cell_type: str, fold: int) -> None:
        """The steps after pretrain, and the fold's record."""

        def pairs(out: Mapping[str, Path]) -> None:
            for number, backbone in enumerate(self.config.backbones):
                for role in ("student", "teacher"):
                    network = self.network(self.seed(fold, cell_type, number, role), number)
                    save_weights(network, out["weights"] / f"{backbone.name}.{role}.safetensors")

        def logits(out: Mapping[str, Path]) -> None:
            out["weights"].mkdir()  # in place of logits, which publishing does not read

        def of_fold(prefix: str) -> None:
            step = "pseudo_label" if self.kind == "pseudo_label" else "infer"
            record_task(self.store, self.screen, prefix, step, fold, cell_type, holdout=self.holdout)

        name = f"{cell_type}{fold}"
        if self.kind == "finetune":
            self._once("finetune", name, pairs, lambda prefix: record_task(
                self.store, self.screen, prefix, "finetune", fold, cell_type
            ))  # fmt: skip
        if self.kind == "pseudo_label":
            self._once("pseudo_label", name, pairs, of_fold)
        else:
            self._once("infer", name, logits, of_fold)

    def report(self, **changes: Any) -> None:
        """Writes results under the run's key; `changes` go into metrics.json."""
        prefix = f"runs/{self.key}/results"
        self.store.put(f"{prefix}/metrics.json", json.dumps({**METRICS, **changes}).encode())
        lineage = {"run": self.key, "manifest_digest": self.screen.digest()}
        self.store.put(f"{prefix}/lineage.json", json.dumps(lineage).encode())

    def _once(self, step: str, name: str, work: Any, finished: Any) -> None:
        out = self.folder / "work" / self.key / step / name / "weights"
        inputs = {"key": self.key, "name": name, "kind": self.kind}
        run_once(self.store, step, inputs, {"weights": out}, work, finished=finished)


def hash_of(*parts: object) -> int:
    """A different seed for each network."""
    return sum(ord(letter) * 31**n for n, letter in enumerate(repr(parts))) % 2**31


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
