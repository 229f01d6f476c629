"""Publishes a finished run as a model: copies its networks and describes them, completely or not at all.

A model does not depend on its run: the run's records and outputs may be removed afterwards. Its card, for people, has its data,
method, scores and limits (Mitchell et al. 2019, arXiv:1810.03993); the text is model_card.md.j2.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from components.core import progress
from components.core.config import RunConfig, parse, result_config
from components.core.errors import InputError, MissingObjectError
from components.core.evaluation.table import SCORE_NAMES, accuracy_table
from components.core.registry.model_manifest import (
    CARD,
    CONFIG,
    MANIFEST,
    METRICS,
    MODELS,
    PLATES,
    ModelManifest,
    NetworkFile,
)
from components.core.registry.new_plates import design_of
from components.core.registry.published_models import read_model
from components.core.storage.digests import digest_bytes, digest_text
from components.core.storage.finished import StoredFile, fetch_finished, write_attempt
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import HOLDOUT, PREDICTING_STEPS, RESULTS, RUNS, Learned, TaskRecord
from components.core.storage.run_records import MANIFEST as SCREEN
from components.core.storage.runs import fetch_run, read_tasks

OUTPUT = "weights"
"""The output of pretrain, finetune and pseudo_label that holds their networks."""


class Published(NamedTuple):
    """A published model's manifest, and whether this call published it."""

    model: ModelManifest
    new: bool


def publish(store: ObjectStore, run: str, replace: bool = False) -> Published:
    """Publishes a run in its store; publishing it again does nothing.

    With `replace`, the files of a published model are written again, for some may be damaged, and its manifest is replaced;
    `cellsignal models gc` removes the old files.

    Raises:
        InputError: no such run, it is not finished, or its outputs are missing or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        source = _FinishedRun(store, run, Path(folder))
        prefix, version, attempt = f"{MODELS}/{source.fingerprint}", "", ""
        with suppress(MissingObjectError):
            _, version = store.get_versioned(f"{prefix}/{MANIFEST}")
        if replace or not version:
            attempt = write_attempt(store, prefix, f"{prefix}/{MANIFEST}", version, source.upload)
        return Published(read_model(store, source.fingerprint), bool(attempt))


def model_fingerprint(
    config: RunConfig, screen: str, holdout: str, code_version: str, folds: Mapping[str, Sequence[int]]
) -> str:
    """Digest of what determines a model: configuration, manifests, code and folds; not where and when it was trained.

    `screen` and `holdout` are digests of the run's manifests, `folds` those that have networks by cell type. If the code version
    has a digest of the sources, only that counts.
    """
    sources = re.search(r"sources ([0-9a-f]+)", code_version)
    content = {
        "config": result_config(config),
        "screen": screen,
        "holdout": holdout,
        "code": sources[1] if sources else code_version,
        "folds": {cell_type: sorted(numbers) for cell_type, numbers in folds.items()},
    }
    return digest_text(json.dumps(content, sort_keys=True))


class _FinishedRun:
    """A run with everything that publishing reads of it; `work` is a temporary folder, `folds` have networks, by cell type."""

    def __init__(self, store: ObjectStore, key: str, work: Path) -> None:
        self.store, self.work = store, work
        self.record = fetch_run(store, key, work, "run")
        self.config = parse(RunConfig, self.record.config, source=f"run {key}")
        self.screen, self.holdout = Manifest.read(work / SCREEN), Manifest.read(work / HOLDOUT)
        self.metrics = _metrics(store, key, self.screen)
        digests = self.screen.digest(), self.holdout.digest()
        self._tasks = {
            (task.step, task.fold, task.cell_type or task.backbone): task
            for task in read_tasks(store, key, "pretrain", "finetune", *PREDICTING_STEPS)
            if (task.screen, task.holdout or digests[1]) == digests
        }
        trained = self.config.folds.trained
        scored = self.metrics.get("partial", {}).get("folds", {})  # if the run was ended without its missing folds
        self.folds = {name: tuple(sorted(scored.get(name, trained))) for name in self.config.screen.cell_types}
        for cell_type, folds in self.folds.items():
            for fold in folds:
                self._task("pseudo_label" if self.config.has_pseudo_labels else "infer", fold, cell_type)
        self.code_version = str(self.record.lineage.get("code_version", ""))
        self.fingerprint = model_fingerprint(self.config, *digests, self.code_version, self.folds)

    def upload(self, attempt: str) -> bytes:
        """Writes everything but the manifest into the store; returns the manifest's content."""
        config, screen = self.config, self.screen
        networks, learned = self._upload_networks(f"{MODELS}/{self.fingerprint}/{attempt}")
        labelled = {plate.experiment for plate in screen.plates if plate.labelled}
        model = ModelManifest(
            fingerprint=self.fingerprint,
            attempt=attempt,
            name=config.name,
            created=datetime.now(UTC),
            run=self.record.key,
            store=self.store.uri(""),
            code_version=self.code_version,
            lineage=self.record.lineage,
            config=json.loads(config.model_dump_json()),
            screen=screen.digest(),
            channels=screen.channels,
            image_shape=screen.image_shape,
            dtype=screen.dtype,
            cell_types=config.screen.cell_types,
            folds=self.folds,
            backbones=tuple(backbone.name for backbone in config.backbones),
            predicted_by=config.predict.weights if config.mean_teacher.enabled else "pretrained",
            vocabulary=screen.vocabulary,
            design=design_of(screen, config.prior),
            temperatures=self.metrics.get("temperatures", {}),
            experiment_folds=screen.folds,
            taught=learned,
            unlabelled=tuple(sorted({plate.experiment for plate in screen.plates} - labelled)),
            held_out=tuple(sorted({plate.experiment for plate in self.holdout.plates})),
            partial=bool(self.metrics.get("partial")),
            scores={name: self.metrics[name] for name in SCORE_NAMES if name in self.metrics},
            files=(),
            networks=tuple(networks),
        )
        nothing = {"prefix": "", "wells": (), "well_folds": ()}
        contents = {
            METRICS: json.dumps(self.metrics, indent=2) + "\n",
            CONFIG: config.dump(),
            CARD: _card(model, self.metrics, screen),
            PLATES: json.dumps([plate.model_copy(update=nothing).model_dump() for plate in screen.plates]),
        }
        files = []
        for name, text in contents.items():
            data = text.encode()
            self.store.put(model.key(name), data)
            files.append(StoredFile(path=name, size=len(data), sha256=digest_bytes(data)))
        return model.model_copy(update={"files": tuple(files)}).to_json()

    def _upload_networks(self, prefix: str) -> tuple[list[NetworkFile], Learned]:
        """Copies the networks that predict; returns them, and the labels that any of them learned, also in earlier runs.

        They are one per fold, cell type and backbone; if training ended with pretrain, one per fold and backbone.
        """
        networks, learned = [], Learned()
        config = self.config
        for fold in sorted({number for numbers in self.folds.values() for number in numbers}):
            for backbone in config.backbones:
                task = self._task("pretrain", fold, backbone.name)
                learned |= task.learned
                if not config.mean_teacher.enabled:
                    networks.append(self._copy(prefix, task, "weights.safetensors", backbone.name))
        if config.mean_teacher.enabled:
            step = "pseudo_label" if config.has_pseudo_labels else "finetune"
            for task in (self._task(step, fold, name) for name, folds in self.folds.items() for fold in folds):
                for backbone in config.backbones:
                    file = f"{backbone.name}.{config.predict.weights}.safetensors"
                    networks.append(self._copy(prefix, task, file, backbone.name))
        return networks, learned

    def _task(self, step: str, fold: int, of: str) -> TaskRecord:
        """The record of a task of a backbone or cell type; InputError unless it is of the run's present screen."""
        if (step, fold, of) not in self._tasks:
            raise InputError(
                f"run {self.record.key}: fold {fold} of {of} has no networks for the run's present screen; run it again to its "
                "end first"
            )
        return self._tasks[step, fold, of]

    def _copy(self, prefix: str, task: TaskRecord, file: str, backbone: str) -> NetworkFile:
        """Copies one network of a task, so that the local disk holds no more than one."""
        parts = (OUTPUT, str(task.fold), task.cell_type, f"{backbone}.safetensors")
        path = "/".join(part for part in parts if part)
        progress.note(f"publishing {path}")
        local = self.work / "network.safetensors"
        (stored,) = fetch_finished(self.store, task.prefix, {f"{OUTPUT}/{file}": local})
        self.store.upload_file(local, f"{prefix}/{path}")
        local.unlink()
        file_of = stored.model_dump() | {"path": path}
        return NetworkFile(fold=task.fold, cell_type=task.cell_type, backbone=backbone, **file_of)


def _card(model: ModelManifest, metrics: Mapping[str, Any], screen: Manifest) -> str:
    """The model's card, Markdown."""
    from components.core.evaluation import page  # imports Matplotlib, which only publishing needs

    cell_types = []
    for cell_type in model.cell_types:
        plates = [plate for plate in screen.plates if plate.cell_type == cell_type]
        labelled = {plate.experiment for plate in plates if plate.labelled}
        others = {plate.experiment for plate in plates} - labelled
        cell_types.append((cell_type, len(labelled), len(others), len(plates)))
    template = page.environment("components.core.registry").get_template("model_card.md.j2")
    return template.render(
        model=model,
        config=model.run_config(),
        vocabulary=model.vocabulary,
        word=model.run_config().screen.perturbation_name,
        cell_types=cell_types,
        accuracy=accuracy_table(metrics).markup,
        scores=[
            (SCORE_NAMES[name], name in metrics, page.explanation(name, model.run_config())) for name in page.KINDS
        ],
    )


def _metrics(store: ObjectStore, key: str, screen: Manifest) -> dict[str, Any]:
    """The metrics of a run's report; InputError if there is none, or it is of an earlier screen."""
    prefix = f"{RUNS}/{key}/{RESULTS}"
    try:
        lineage = json.loads(store.get(f"{prefix}/lineage.json"))
        metrics = dict(json.loads(store.get(f"{prefix}/{METRICS}")))
        digest = lineage["manifest_digest"]
    except MissingObjectError:
        raise InputError(
            f"{store.uri(prefix)}: run {key} has no report yet; run it again to its end, or end it with `cellsignal finish`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{store.uri(prefix)}: damaged; run {key} again to its end") from None
    if digest != screen.digest():
        raise InputError(
            f"{store.uri(prefix)}: the report is of an earlier screen than the run's present one; run {key} again to its end"
        )
    return metrics
