"""Publishes a finished run as a model: its networks and all that is known of them, whole or not at all. The store is passed in.

What is published does not depend on the run any more: its records and outputs may go.
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
from components.core.config import RunConfig, parse, result_config
from components.core.errors import InputError, StepError
from components.core.registry.model_card import card_of
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
    parse_model,
)
from components.core.registry.model_weights import (
    OUTPUT,
    SourceFile,
    check_architecture,
    learned_labels,
    predicted_by,
    tensor_shapes,
    weight_files,
)
from components.core.registry.plate_design import design_of
from components.core.storage.digests import digest_bytes, digest_text
from components.core.storage.finished import fetch_finished_file
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.manifest import Manifest
from components.core.storage.run_outcome import RESULTS
from components.core.storage.run_record import (
    HOLDOUT,
    RUNS,
    FoldRecord,
    RunRecord,
    finished_folds,
    read_run,
)
from components.core.storage.run_record import MANIFEST as SCREEN
from components.core.storage.stored_file import StoredFile

SCORES = ("out_of_fold", "unlabelled", "holdout")


@dataclass(frozen=True)
class Published:
    """What publishing has come to.

    Attributes:
        model: the published model.
        new: whether this call published it; False where it was there.
    """

    model: ModelManifest
    new: bool


def model_fingerprint(
    config: RunConfig, screen: str, holdout: str, code_version: str, folds: Mapping[str, Sequence[int]]
) -> str:
    """What decides a model: configuration, screen, code, and which folds it has; where and when it was trained do not.

    Args:
        config: of the run.
        screen: digest of the training screen's manifest.
        holdout: digest of the held-out experiments' manifest.
        code_version: as lineage tells it; of its parts the digest of the sources counts, where it has one.
        folds: that have networks, by cell type.
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


def publish(store: ObjectStorage, run: str, anew: bool = False) -> Published:
    """Publishes a run; publishing it again does nothing.

    Args:
        store: where the run is recorded, and the registry is.
        run: its key.
        anew: whether files of a model that is there already are written again, and its manifest replaced: for one that is
            damaged. Those of before go with `cellsignal models gc`.

    Raises:
        InputError: no such run, one that is not finished, or outputs that are gone, damaged or of another architecture.
        StepError: the store failed.
    """
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        work = Path(folder)
        source = _Run.read(store, run, work)
        place = f"{MODELS}/{source.fingerprint}"
        if not anew and (found := _published(store, place)):
            return Published(found, False)
        attempt = uuid.uuid4().hex
        settled = False
        try:
            model = source.upload(store, attempt, work)
            # Where the answer is lost, the store may have taken the manifest: then its files must stay.
            settled = True
            content = model.model_dump_json(indent=1).encode()
            new = (
                _replace(store, f"{place}/{MANIFEST}", content)
                if anew
                else store.put_if_absent(f"{place}/{MANIFEST}", content)
            )
            settled = new
        finally:
            if not settled:
                _forget(store, f"{place}/{attempt}/")
        if new:
            return Published(model, True)
        found = _published(store, place)
        if found is None:
            raise StepError(f"{store.uri(place)}: was removed while it was published; publish run {run} again")
        return Published(found, False)


@dataclass(frozen=True)
class _Run:
    """A finished run, as far as its records tell."""

    key: str
    record: RunRecord
    config: RunConfig
    screen: Manifest
    holdout: Manifest
    metrics: dict[str, Any]
    folds: Mapping[str, Sequence[FoldRecord]]

    @classmethod
    def read(cls, store: ObjectStorage, key: str, work: Path) -> _Run:
        record = read_run(store, key, work, said="run")
        config = parse(RunConfig, record.config, source=f"run {key}")
        screen, holdout = Manifest.read(work / SCREEN), Manifest.read(work / HOLDOUT)
        metrics = _results(store, key, screen)
        finished = finished_folds(store, key, screen, holdout)
        scored = metrics.get("partial", {}).get("folds", {})  # of a run that was ended without its missing folds
        folds = {}
        for cell_type in config.screen.cell_types:
            wanted = scored.get(cell_type, config.folds.trained)
            folds[cell_type] = [each for each in finished.get(cell_type, []) if each.fold in wanted]
            lacking = sorted({*wanted} - {each.fold for each in folds[cell_type]})
            if lacking:
                raise InputError(
                    f"run {key}: fold {lacking[0]} of {cell_type} has no networks for the run's present screen; run it again "
                    "to its end first"
                )
        return cls(key, record, config, screen, holdout, metrics, folds)

    @property
    def numbers(self) -> dict[str, tuple[int, ...]]:
        return {cell_type: tuple(record.fold for record in records) for cell_type, records in self.folds.items()}

    @property
    def code_version(self) -> str:
        return str(self.record.lineage.get("code_version", ""))

    @property
    def fingerprint(self) -> str:
        return model_fingerprint(
            self.config, self.screen.digest(), self.holdout.digest(), self.code_version, self.numbers
        )

    def upload(self, store: ObjectStorage, attempt: str, work: Path) -> ModelManifest:
        """Brings everything but the manifest into the store; returns the manifest."""
        screen = self.screen.digest()
        networks = [
            self._network(store, source, attempt, work)
            for source in weight_files(store, self.key, self.config, screen, self.folds)
        ]
        labelled = {plate.experiment for plate in self.screen.plates if plate.labelled}
        model = ModelManifest(
            fingerprint=self.fingerprint,
            attempt=attempt,
            name=self.config.name,
            created=datetime.now(UTC),
            run=self.key,
            store=store.uri(""),
            code_version=self.code_version,
            lineage=self.record.lineage,
            config=json.loads(self.config.model_dump_json()),
            screen=screen,
            channels=self.screen.channels,
            image_size=self.screen.image_size,
            cell_types=self.config.screen.cell_types,
            folds=self.numbers,
            backbones=tuple(backbone.name for backbone in self.config.backbones),
            predicted_by=predicted_by(self.config),
            vocabulary=self.screen.vocabulary,
            design=design_of(self.screen, self.config.prior),
            temperatures=self.metrics.get("temperatures", {}),
            experiment_folds=self.screen.folds,
            taught=learned_labels(store, self.key, self.config, screen, self.folds),
            unlabelled=tuple(sorted({plate.experiment for plate in self.screen.plates} - labelled)),
            held_out=tuple(sorted({plate.experiment for plate in self.holdout.plates})),
            partial=bool(self.metrics.get("partial")),
            scores={name: self.metrics[name] for name in SCORES if name in self.metrics},
            files=(),
            networks=tuple(networks),
        )
        plates = [
            TrainedPlate(
                experiment=plate.experiment,
                plate=plate.plate,
                cell_type=plate.cell_type,
                labelled=plate.labelled,
                histograms=plate.histograms,
            ).model_dump()
            for plate in self.screen.plates
        ]
        contents = {
            METRICS: json.dumps(self.metrics, indent=2) + "\n",
            CONFIG: self.config.dump(),
            CARD: card_of(model, self.metrics, self.screen),
            PLATES: json.dumps(plates),
        }
        files = []
        for name, text in contents.items():
            data = text.encode()
            store.put(model.key(name), data)
            files.append(StoredFile(path=name, size=len(data), sha256=digest_bytes(data)))
        return model.model_copy(update={"files": tuple(files)})

    def _network(self, store: ObjectStorage, source: SourceFile, attempt: str, work: Path) -> NetworkFile:
        """Copies one network, so that no more than one takes room here."""
        path = f"weights/{source.name}"
        progress.note(f"publishing {path}")
        local = work / "network.safetensors"
        file = fetch_finished_file(store, source.place, OUTPUT, source.path, local)
        backbone = next(each for each in self.config.backbones if each.name == source.backbone)
        check_architecture(
            tensor_shapes(local),
            backbone,
            len(self.screen.vocabulary.classes),
            self.screen.channels,
            f"run {self.key}: {path}",
        )
        store.upload_file(local, f"{MODELS}/{self.fingerprint}/{attempt}/{path}")
        local.unlink()
        return NetworkFile(
            fold=source.fold,
            cell_type=source.cell_type,
            backbone=source.backbone,
            path=path,
            size=file.size,
            sha256=file.sha256,
        )


def _results(store: ObjectStorage, key: str, screen: Manifest) -> dict[str, Any]:
    """The metrics of a run's report.

    Raises:
        InputError: there is none, or it is of an earlier screen.
    """
    place = f"{RUNS}/{key}/{RESULTS}"
    try:
        lineage = json.loads(store.get(f"{place}/lineage.json"))
        metrics = dict(json.loads(store.get(f"{place}/{METRICS}")))
        digest = lineage["manifest_digest"]
    except MissingObjectError:
        raise InputError(
            f"{store.uri(place)}: run {key} has no report yet; run it again to its end, or end it with `cellsignal finish`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{store.uri(place)}: damaged; run {key} again to its end") from None
    if digest != screen.digest():
        raise InputError(
            f"{store.uri(place)}: the report is of an earlier screen than the run's present one; run {key} again to its end"
        )
    return metrics


def _published(store: ObjectStorage, place: str) -> ModelManifest | None:
    path = f"{place}/{MANIFEST}"
    try:
        return parse_model(store.get(path), store.uri(path))
    except MissingObjectError:
        return None


def _replace(store: ObjectStorage, path: str, content: bytes) -> bool:
    """Writes a manifest whatever is there; False where somebody else does at the same moment."""
    try:
        _, version = store.get_versioned(path)
    except MissingObjectError:
        return store.put_if_absent(path, content)
    return store.put_if_version(path, content, version)


def _forget(store: ObjectStorage, prefix: str) -> None:
    try:
        store.delete_prefix(prefix)
    except (InputError, StepError) as error:
        progress.warn(f"an unfinished model stays in the store until `cellsignal models gc` ({error})")
