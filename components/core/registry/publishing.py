"""Publishes a finished run as a model: copies its networks and describes them, completely or not at all. The store is passed in.

A model does not depend on its run any more: the run's records and outputs may be removed.
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
from typing import Any

from components.core import progress
from components.core.config import RunConfig, parse
from components.core.config.result_config import result_config
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
from components.core.registry.reference import design_of
from components.core.storage.digests import digest_bytes, digest_text
from components.core.storage.finished import StoredFile, fetch_finished_file
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import HOLDOUT, RESULTS, RUNS, Learned, RunRecord, TaskRecord
from components.core.storage.run_records import MANIFEST as SCREEN
from components.core.storage.runs import fetch_run, finished_folds, read_task

SCORES = ("out_of_fold", "unlabelled", "holdout")
OUTPUT = "weights"
"""The output of pretrain, finetune and pseudo_label that holds their networks."""


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        model: its manifest.
        new: whether this call published it; False if it was published before.
    """

    model: ModelManifest
    new: bool


def model_fingerprint(
    config: RunConfig, screen: str, holdout: str, code_version: str, folds: Mapping[str, Sequence[int]]
) -> str:
    """Digest of what determines a model: configuration, screen, code, and its folds; not where and when it was trained.

    Args:
        config: the run's.
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


def publish(store: ObjectStore, run: str, anew: bool = False) -> Published:
    """Publishes a run; publishing it again does nothing.

    Args:
        store: the store that has the run's records, and the registry.
        run: its key.
        anew: whether to write the files of a published model again and replace its manifest, if they are damaged. The old files
            go with `cellsignal models gc`.

    Raises:
        InputError: no such run, one that is not finished, or its outputs are gone or damaged.
        StepError: the store failed.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        work = Path(folder)
        source = _FinishedRun.read(store, run, work)
        prefix = f"{MODELS}/{source.fingerprint}"
        if not anew and (found := _published(store, prefix)):
            return Published(found, False)
        attempt = uuid.uuid4().hex
        try:
            model = source.upload(store, attempt, work)
        except BaseException:
            _discard(store, f"{prefix}/{attempt}/")
            raise
        # If this write fails without an answer, the store may have the manifest: then the files must stay.
        if _write(store, f"{prefix}/{MANIFEST}", model.to_json(), replace=anew):
            return Published(model, True)
        _discard(store, f"{prefix}/{attempt}/")
        found = _published(store, prefix)
        if found is None:
            raise StepError(f"{store.uri(prefix)}: was removed while it was published; publish run {run} again")
        return Published(found, False)


@dataclass(frozen=True)
class _SourceNetwork:
    """A network among the outputs of the step that trained it."""

    fold: int
    cell_type: str | None
    backbone: str
    finished: str
    file: str

    @property
    def path(self) -> str:
        """Its path in the model."""
        names = (OUTPUT, str(self.fold), self.cell_type, f"{self.backbone}.safetensors")
        return "/".join(name for name in names if name)


@dataclass(frozen=True)
class _FinishedRun:
    key: str
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
        return cls(key, record, config, screen, holdout, metrics, folds)

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

    def upload(self, store: ObjectStore, attempt: str, work: Path) -> ModelManifest:
        """Writes everything but the manifest into the store; returns the manifest."""
        networks = [self._copy(store, network, attempt, work) for network in self._networks(store)]
        config, screen = self.config, self.screen
        labelled = {plate.experiment for plate in screen.plates if plate.labelled}
        model = ModelManifest(
            fingerprint=self.fingerprint,
            attempt=attempt,
            name=config.name,
            created=datetime.now(UTC),
            run=self.key,
            store=store.uri(""),
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
            taught=self._learned(store),
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
            store.put(model.key(name), data)
            files.append(StoredFile(path=name, size=len(data), sha256=digest_bytes(data)))
        return model.model_copy(update={"files": tuple(files)})

    def _networks(self, store: ObjectStore) -> list[_SourceNetwork]:
        """One per fold, cell type and backbone; if training ended with pretrain, one per fold and backbone."""
        found: dict[str, _SourceNetwork] = {}
        weights = self.config.predict.weights
        for cell_type, records in self.folds.items():
            for record in records:
                for backbone in (each.name for each in self.config.backbones):
                    if not self.config.mean_teacher.enabled:
                        trained = self._task(store, "pretrain", record.fold, backbone=backbone).prefix
                        network = _SourceNetwork(record.fold, None, backbone, trained, "weights.safetensors")
                    else:
                        trained = record.prefix
                        if not self.config.has_pseudo_labels:
                            trained = self._task(store, "finetune", record.fold, cell_type).prefix
                        file = f"{backbone}.{weights}.safetensors"
                        network = _SourceNetwork(record.fold, cell_type, backbone, trained, file)
                    found[network.path] = network
        return list(found.values())

    def _learned(self, store: ObjectStore) -> Learned:
        """Treatment labels that any of its networks learned, including those of earlier runs."""
        learned = Learned()
        for fold in sorted({number for numbers in self.fold_numbers.values() for number in numbers}):
            for backbone in self.config.backbones:
                learned |= self._task(store, "pretrain", fold, backbone=backbone.name).learned
        return learned

    def _task(
        self, store: ObjectStore, step: str, fold: int, cell_type: str | None = None, backbone: str | None = None
    ) -> TaskRecord:
        return read_task(store, self.key, self.screen, step, fold, cell_type, backbone)

    def _copy(self, store: ObjectStore, network: _SourceNetwork, attempt: str, work: Path) -> NetworkFile:
        """Copies one network, so that the local disk holds no more than one."""
        progress.note(f"publishing {network.path}")
        local = work / "network.safetensors"
        file = fetch_finished_file(store, network.finished, OUTPUT, network.file, local)
        store.upload_file(local, f"{MODELS}/{self.fingerprint}/{attempt}/{network.path}")
        local.unlink()
        return NetworkFile(
            fold=network.fold,
            cell_type=network.cell_type,
            backbone=network.backbone,
            path=network.path,
            size=file.size,
            sha256=file.sha256,
        )


def _metrics(store: ObjectStore, key: str, screen: Manifest) -> dict[str, Any]:
    """The metrics of a run's report.

    Raises:
        InputError: there is no report, or it is of an earlier screen.
    """
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


def _published(store: ObjectStore, prefix: str) -> ModelManifest | None:
    path = f"{prefix}/{MANIFEST}"
    try:
        return ModelManifest.load(store, path)
    except MissingObjectError:
        return None


def _write(store: ObjectStore, path: str, content: bytes, replace: bool) -> bool:
    """Writes a manifest; False if another process wrote it at the same moment, or it exists and is not to be replaced."""
    if replace:
        try:
            return store.put_if_version(path, content, store.get_versioned(path)[1])
        except MissingObjectError:
            pass
    return store.put_if_absent(path, content)


def _discard(store: ObjectStore, prefix: str) -> None:
    try:
        store.delete_prefix(prefix)
    except (InputError, StepError) as error:
        progress.warn(f"an unfinished model stays in the store until `cellsignal models gc` ({error})")
