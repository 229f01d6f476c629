"""Publishes a finished run as a model: copies its networks and describes them, completely or not at all.

A model does not depend on its run: the run's records and outputs may be removed afterwards.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from components.core import progress
from components.core.config import RunConfig, parse, result_config
from components.core.errors import InputError, MissingObjectError, StepError
from components.core.registry.model_card import model_card
from components.core.registry.model_manifest import (
    CARD,
    CONFIG,
    MANIFEST,
    METRICS,
    MODELS,
    PLATES,
    ModelManifest,
    NetworkFile,
    TrainedPlate,
)
from components.core.registry.new_plates import design_of
from components.core.registry.published_models import read_model
from components.core.storage.digests import digest_bytes, digest_text
from components.core.storage.finished import StoredFile, fetch_finished
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import HOLDOUT, RESULTS, RUNS, Learned, RunRecord, TaskRecord
from components.core.storage.run_records import MANIFEST as SCREEN
from components.core.storage.runs import fetch_run, finished_folds, read_task

SCORES = ("out_of_fold", "unlabelled", "holdout")
OUTPUT = "weights"
"""The output of pretrain, finetune and pseudo_label that holds their networks."""


class Published(NamedTuple):
    """A published model's manifest, and whether this call published it."""

    model: ModelManifest
    new: bool


def publish(store: ObjectStore, run: str, replace: bool = False) -> Published:
    """Publishes a run; publishing it again does nothing.

    Args:
        store: the store of the run, and the registry.
        run: the run's key.
        replace: whether to write the files of a published model again, if some are damaged, and to replace its manifest;
            `cellsignal models gc` removes the old files.

    Raises:
        InputError: no such run, it is not finished, or its outputs are missing or damaged.
        StepError: the store failed.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        source = _FinishedRun.read(store, run, Path(folder))
        fingerprint = source.fingerprint
        manifest, attempt = f"{MODELS}/{fingerprint}/{MANIFEST}", uuid.uuid4().hex
        if not replace and store.exists(manifest):
            return Published(read_model(store, fingerprint), False)
        try:
            model = source.upload(attempt)
        except BaseException:
            _discard(store, f"{MODELS}/{fingerprint}/{attempt}/")
            raise
        # If a write of the manifest fails without an answer, the store may have it: then the files must stay.
        if replace:
            store.put(manifest, model.to_json())
        elif not store.put_if_absent(manifest, model.to_json()):
            _discard(store, model.key(""))
            return Published(read_model(store, fingerprint), False)
        return Published(model, True)


def model_fingerprint(
    config: RunConfig, screen: str, holdout: str, code_version: str, folds: Mapping[str, Sequence[int]]
) -> str:
    """Digest of what determines a model: configuration, screen, code and folds; not where and when it was trained.

    Args:
        config: the run's configuration.
        screen: digest of the training screen's manifest.
        holdout: digest of the held-out experiments' manifest.
        code_version: as in the lineage; if it has a digest of the sources, only that counts.
        folds: those that have networks, by cell type.
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


@dataclass(frozen=True)
class _FinishedRun:
    """A run with everything that publishing reads of it; `work` is a temporary folder.

    `folds` are the records of the tasks that predicted, by cell type: one per fold that has networks.
    """

    store: ObjectStore
    work: Path
    record: RunRecord
    config: RunConfig
    screen: Manifest
    holdout: Manifest
    metrics: dict[str, Any]
    folds: Mapping[str, Sequence[TaskRecord]]

    @classmethod
    def read(cls, store: ObjectStore, key: str, work: Path) -> _FinishedRun:
        record = fetch_run(store, key, work, "run")
        config = parse(RunConfig, record.config, source=f"run {key}")
        screen, holdout = Manifest.read(work / SCREEN), Manifest.read(work / HOLDOUT)
        metrics = _metrics(store, key, screen)
        finished = finished_folds(store, key, screen, holdout)
        scored = metrics.get("partial", {}).get("folds", {})  # if the run was ended without its missing folds
        folds = {}
        for cell_type in config.screen.cell_types:
            wanted = scored.get(cell_type, config.folds.trained)
            folds[cell_type] = [each for each in finished.get(cell_type, []) if each.fold in wanted]
            missing = sorted({*wanted} - {each.fold for each in folds[cell_type]})
            if missing:
                raise InputError(
                    f"run {key}: fold {missing[0]} of {cell_type} has no networks for the run's present screen; run it again "
                    "to its end first"
                )
        return cls(store, work, record, config, screen, holdout, metrics, folds)

    @property
    def fold_numbers(self) -> dict[str, tuple[int, ...]]:
        return {cell_type: tuple(record.fold for record in records) for cell_type, records in self.folds.items()}

    @property
    def code_version(self) -> str:
        return str(self.record.lineage.get("code_version", ""))

    @property
    def fingerprint(self) -> str:
        return model_fingerprint(
            self.config, self.screen.digest(), self.holdout.digest(), self.code_version, self.fold_numbers
        )

    def upload(self, attempt: str) -> ModelManifest:
        """Writes everything but the manifest into the store; returns the manifest."""
        fingerprint, config, screen = self.fingerprint, self.config, self.screen
        networks, learned = self._upload_networks(f"{MODELS}/{fingerprint}/{attempt}")
        labelled = {plate.experiment for plate in screen.plates if plate.labelled}
        model = ModelManifest(
            fingerprint=fingerprint,
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
            image_size=screen.image_size,
            cell_types=config.screen.cell_types,
            folds=self.fold_numbers,
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
            scores={name: self.metrics[name] for name in SCORES if name in self.metrics},
            files=(),
            networks=tuple(networks),
        )
        columns = set(TrainedPlate.model_fields)
        contents = {
            METRICS: json.dumps(self.metrics, indent=2) + "\n",
            CONFIG: config.dump(),
            CARD: model_card(model, self.metrics, screen),
            PLATES: json.dumps([plate.model_dump(include=columns) for plate in screen.plates]),
        }
        files = []
        for name, text in contents.items():
            data = text.encode()
            self.store.put(model.key(name), data)
            files.append(StoredFile(path=name, size=len(data), sha256=digest_bytes(data)))
        return model.model_copy(update={"files": tuple(files)})

    def _upload_networks(self, prefix: str) -> tuple[list[NetworkFile], Learned]:
        """Copies the networks that predict; returns them, and the labels that any of them learned, also in earlier runs.

        They are one per fold, cell type and backbone; if training ended with pretrain, one per fold and backbone.
        """
        networks, learned = [], Learned()
        config, key = self.config, self.record.key
        for fold in sorted({number for numbers in self.fold_numbers.values() for number in numbers}):
            for backbone in config.backbones:
                task = read_task(self.store, key, self.screen, "pretrain", fold, backbone=backbone.name)
                learned |= task.learned
                if not config.mean_teacher.enabled:
                    networks.append(self._copy(prefix, task, "weights.safetensors", backbone.name))
        if config.mean_teacher.enabled:
            for task in (record for records in self.folds.values() for record in records):
                if not config.has_pseudo_labels:  # the task that predicted is infer's, which has no weights
                    task = read_task(self.store, key, self.screen, "finetune", task.fold, task.cell_type)
                for backbone in config.backbones:
                    file = f"{backbone.name}.{config.predict.weights}.safetensors"
                    networks.append(self._copy(prefix, task, file, backbone.name))
        return networks, learned

    def _copy(self, prefix: str, task: TaskRecord, file: str, backbone: str) -> NetworkFile:
        """Copies one network of a task, so that the local disk holds no more than one."""
        parts = (OUTPUT, str(task.fold), task.cell_type, f"{backbone}.safetensors")
        path = "/".join(part for part in parts if part)
        progress.note(f"publishing {path}")
        local = self.work / "network.safetensors"
        (stored,) = fetch_finished(self.store, task.prefix, {f"{OUTPUT}/{file}": local})
        self.store.upload_file(local, f"{prefix}/{path}")
        local.unlink()
        return NetworkFile(
            fold=task.fold,
            cell_type=task.cell_type,
            backbone=backbone,
            path=path,
            size=stored.size,
            sha256=stored.sha256,
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


def _discard(store: ObjectStore, prefix: str) -> None:
    try:
        store.delete_prefix(prefix)
    except (InputError, StepError) as error:
        progress.warn(f"an unfinished model stays in the store until `cellsignal models gc` ({error})")
