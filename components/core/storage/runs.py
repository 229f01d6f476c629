"""What a run has finished so far, in the object store under the run's key: enough to report on it without its missing folds.

runs/KEY/run.json                                       configuration, lineage, the plates it reads; of a prediction, its model
runs/KEY/screen.json, holdout.json, holdout_labels.csv  normalize's outputs; of a prediction, the reference manifest of the
                                                        model's screen, the new plates, and no labels
runs/KEY/tasks/STEP/FOLD[/CELL_TYPE][/BACKBONE].json    a finished task: where the store keeps its outputs
runs/KEY/results, failed                                how the run ended: run_outcome.py

Records only point to finished outputs, so a task costs one request and nothing is stored twice. `cellsignal store gc` keeps the
plates and outputs that records point to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from components.core.config import BackboneConfig, FrozenModel, HeadConfig, parse
from components.core.errors import InputError
from components.core.storage.digests import digest_text
from components.core.storage.interface import MissingObjectError, ObjectReader, ObjectWriter
from components.core.storage.manifest import Manifest
from components.core.stored_record import StoredRecord

RUNS = "runs"
KEY = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
RECIPE = "recipe"
"""In the lineage of a compiled pipeline: digest of everything that decides a run except its screen; see cluster_run_key."""
MANIFEST, HOLDOUT, HOLDOUT_LABELS = "screen.json", "holdout.json", "holdout_labels.csv"
OPTION = "init_from"
PREDICTING_STEPS = ("infer", "pseudo_label")
"""The steps whose outputs are logits; a run has tasks of one of them."""
_IF_DAMAGED = "run again, or forget the run (`cellsignal store forget`) if an earlier version of cellsignal wrote it"


class PredictionRecord(FrozenModel):
    """What makes a run a prediction: trained networks classify new plates."""

    model: str = Field(description="fingerprint of the model that predicts")
    address: str = Field(description="where it is published")
    experiments: tuple[str, ...] = Field(description="the requested ones; empty for all")
    any_cell_type: bool = Field(
        description="whether wells of a cell type that the model was not trained on are classified"
    )
    folds: dict[str, tuple[int, ...]] = Field(
        description="the model's folds that predict, by cell type of the new plates"
    )


class RunRecord(StoredRecord):
    """One run: a training, or a prediction."""

    KIND = "run's record"
    IF_DAMAGED = _IF_DAMAGED

    key: str = Field(pattern=f"^{KEY}$", description="name of the run's folder in the store")
    config: dict[str, Any] = Field(description="the whole configuration")
    lineage: dict[str, Any] = Field(description="code version, seeds, start")
    plates: tuple[str, ...] = Field((), description="prefixes of the packed plates that the run reads")
    prediction: PredictionRecord | None = Field(None, description="None for a training")


class Learned(FrozenModel):
    """The treatment labels that weights have learned, including those of the runs that they started from."""

    experiments: tuple[str, ...] = Field((), description="whole experiments")
    wells: tuple[str, ...] = Field((), description="id_codes of single wells, if folds hold out wells")

    def __or__(self, other: Learned) -> Learned:
        """What either has learned."""
        return Learned(
            experiments=tuple(sorted({*self.experiments, *other.experiments})),
            wells=tuple(sorted({*self.wells, *other.wells})),
        )


class TaskRecord(StoredRecord):
    """A finished task of a step."""

    KIND = "task's record"
    IF_DAMAGED = _IF_DAMAGED

    step: str
    fold: int
    cell_type: str | None = None
    backbone: str | None = None
    screen: str = Field(description="digest of the manifest that its networks were trained with")
    holdout: str | None = Field(
        None, description="digest of the predicted held-out plates' manifest; None without logits"
    )
    prefix: str = Field(pattern=r"^finished/", description="key prefix of its outputs, for fetch_finished")
    learned: Learned = Field(Learned(), description="by pretrain's weights, for runs that start from them")


def run_address(text: str) -> tuple[str, str]:
    """Store and key of a run's address, ADDRESS_OF_STORE/runs/KEY; the store is empty for a key alone.

    Raises:
        InputError: neither a key nor an address.
    """
    store, _, key = text.rstrip("/").rpartition("/")
    if not store and re.fullmatch(KEY, key):
        return "", key
    store, _, folder = store.rpartition("/")
    if "://" not in text or folder != RUNS or store.endswith(("/", ":")) or not re.fullmatch(KEY, key):
        raise InputError(
            f"{text}: neither a run's key nor its address, which looks like s3://BUCKET[/PREFIX]/{RUNS}/KEY or "
            f"file:///FOLDER/{RUNS}/KEY"
        )
    return store, key


def cluster_run_key(name: str, recipe: str, source: str, fingerprint: str) -> str:
    """The key of a run on a cluster: the same whenever the same pipeline is submitted on the same data.

    Args:
        name: the configuration's name.
        recipe: digest of everything else that decides the run: configuration, code, images.
        source: address of the screen.
        fingerprint: digest of its listing.
    """
    return f"{name}-{digest_text(json.dumps([recipe, source.rstrip('/'), fingerprint]))[:12]}"


def predicting_name(name: str) -> str:
    """The name of predictions on a cluster, in keys and in KFP, which tells them apart from trainings."""
    return f"{name}-predict"


def write_run(
    store: ObjectWriter,
    record: RunRecord,
    screen: bytes,
    holdout: bytes,
    holdout_labels: bytes | None,
    plates: Iterable[str],
) -> None:
    """Writes what a run starts from; run.json comes last, so a run with a record is complete.

    Args:
        store: where the run's plates are.
        record: the run.
        screen: content of the screen's manifest.
        holdout: content of the held-out experiments' manifest.
        holdout_labels: their labels, CSV; None for a prediction, which has none.
        plates: prefixes of all packed plates.
    """
    folder = f"{RUNS}/{record.key}"
    for name, content in ((MANIFEST, screen), (HOLDOUT, holdout), (HOLDOUT_LABELS, holdout_labels)):
        if content is not None:
            store.put(f"{folder}/{name}", content)
    record = record.model_copy(update={"plates": tuple(sorted(set(plates)))})
    store.put(f"{folder}/run.json", record.model_dump_json(indent=1).encode())


def record_task(
    store: ObjectWriter,
    screen: Manifest,
    prefix: str,
    step: str,
    fold: int,
    cell_type: str | None = None,
    backbone: str | None = None,
    *,
    holdout: Manifest | None = None,
    learned: Learned | None = None,
) -> None:
    """Records a finished task; does nothing if the manifest belongs to no run (a step started by hand).

    Args:
        store: where finished outputs are kept.
        screen: the manifest that the networks were trained with; it has the run's key.
        prefix: key prefix of the outputs, from `run_once`.
        step: the task's step.
        fold: its fold.
        cell_type: its cell type, if it has one.
        backbone: its backbone, if it has one.
        holdout: the held-out plates' manifest, for a task that predicts.
        learned: the labels that its weights have learned, if they may start another run.
    """
    if not screen.run:
        return
    record = TaskRecord(
        step=step,
        fold=fold,
        cell_type=cell_type,
        backbone=backbone,
        screen=screen.digest(),
        holdout=holdout.digest() if holdout else None,
        prefix=prefix,
        learned=learned or Learned(),
    )
    key = _task_key(screen.run, step, fold, cell_type, backbone)
    store.put(key, record.model_dump_json(indent=1).encode())


def read_run(store: ObjectWriter, key: str, label: str) -> RunRecord:
    """A training's record.

    Args:
        store: where the run is recorded.
        key: the run's key.
        label: the option that names the run, for errors.

    Raises:
        InputError: there is no such run, it is a prediction, or its record cannot be read.
    """
    path = f"{RUNS}/{key}/run.json"
    try:
        record = RunRecord.parse(store.get(path), store.uri(path))
    except MissingObjectError:
        there = runs_there({name.split("/")[1] for name in store.list(f"{RUNS}/")})
        raise InputError(
            f"{label} {key}: no such run below {store.uri('')} ({there}); one in another store is "
            f"s3://BUCKET/PREFIX/{RUNS}/KEY or file:///FOLDER/{RUNS}/KEY"
        ) from None
    if record.prediction is not None:
        raise InputError(
            f"{label} {key}: is a prediction by model {record.prediction.model[:12]}, which trains nothing; give the key of a "
            "training (`cellsignal store runs` shows the kind of each run)"
        )
    return record


def runs_there(keys: Iterable[str]) -> str:
    """The keys of known runs, for messages."""
    known = sorted(keys)
    return f"runs there: {', '.join(known)}" if known else "there are no runs"


def fetch_run(store: ObjectWriter, key: str, folder: Path, label: str = "--run") -> RunRecord:
    """Reads a training's record, and downloads its manifests and held-out labels.

    Args:
        store: where the run is recorded.
        key: the run's key.
        folder: receives screen.json, holdout.json and holdout_labels.csv.
        label: the option that names the run, for errors.

    Raises:
        InputError: as read_run, or a file of the run is missing.
    """
    record = read_run(store, key, label)
    for name in (MANIFEST, HOLDOUT, HOLDOUT_LABELS):
        try:
            (folder / name).write_bytes(store.get(f"{RUNS}/{key}/{name}"))
        except MissingObjectError as missing:
            raise InputError(f"{missing.args[0]}: missing; run {key} again") from None
    return record


def lineage_of(store: ObjectReader, key: str) -> dict[str, Any]:
    """The lineage that a run was recorded with; empty if it has no readable record."""
    try:
        return dict(RunRecord.parse(store.get(f"{RUNS}/{key}/run.json"), key).lineage)
    except (MissingObjectError, InputError):
        return {}


def finished_folds(store: ObjectWriter, key: str, screen: Manifest, holdout: Manifest) -> dict[str, list[TaskRecord]]:
    """The tasks that have predicted with these manifests, by cell type, ascending by fold; not those of an earlier screen.

    Args:
        store: where the run is recorded.
        key: the run's key.
        screen: the run's manifest.
        holdout: the run's held-out experiments.

    Raises:
        InputError: a record is damaged.
    """
    found: dict[str, list[TaskRecord]] = {}
    for step in PREDICTING_STEPS:
        for record in _tasks(store, key, step):
            if (record.screen, record.holdout) == (screen.digest(), holdout.digest()) and record.cell_type:
                found.setdefault(record.cell_type, []).append(record)
    return {cell_type: sorted(records, key=lambda record: record.fold) for cell_type, records in found.items()}


def read_task(
    store: ObjectReader,
    key: str,
    screen: str,
    step: str,
    fold: int,
    cell_type: str | None = None,
    backbone: str | None = None,
) -> TaskRecord:
    """One task's record.

    Args:
        store: where the run is recorded.
        key: the run's key.
        screen: digest of the run's present manifest.
        step: the task's step; fold, cell type and backbone as in record_task.
        fold: see step.
        cell_type: see step.
        backbone: see step.

    Raises:
        InputError: it is missing, damaged, or of an earlier screen.
    """
    path = _task_key(key, step, fold, cell_type, backbone)
    try:
        record = TaskRecord.parse(store.get(path), path)
    except MissingObjectError:
        raise InputError(f"{path}: missing; run {key} again") from None
    if record.screen != screen:
        raise InputError(f"{path}: of an earlier screen than the run's present one; run {key} again to its end")
    return record


@dataclass(frozen=True)
class SourceRun:
    """A recorded run whose pretrained weights may start another one; no weight has been fetched.

    Attributes:
        key: the run's key.
        backbones: its networks by name.
        head: its classifier.
        weights: records of its pretrained weights by fold and backbone.
    """

    key: str
    backbones: Mapping[str, BackboneConfig]
    head: HeadConfig
    weights: Mapping[tuple[int, str], TaskRecord]


def read_source(store: ObjectWriter, key: str) -> SourceRun:
    """Reads a run's configuration and where its pretrained weights are.

    Raises:
        InputError: as read_run, or a task's record is damaged.
    """
    record = read_run(store, key, f"{OPTION}: run")
    label = f"{OPTION}: run {key}"
    listed = record.config.get("backbones")
    backbones = [parse(BackboneConfig, each, label) for each in (listed if isinstance(listed, list) else [])]
    return SourceRun(
        key,
        {backbone.name: backbone for backbone in backbones},
        parse(HeadConfig, record.config.get("head"), label),
        {(task.fold, task.backbone or ""): task for task in _tasks(store, key, "pretrain")},
    )


def read_source_screen(store: ObjectWriter, source: SourceRun) -> Manifest:
    """The screen that the run's pretrained weights were trained with.

    Raises:
        InputError: it is missing, cannot be read, or is not the screen of every weight.
    """
    path = f"{RUNS}/{source.key}/{MANIFEST}"
    try:
        screen = Manifest.model_validate_json(store.get(path))
    except (MissingObjectError, ValidationError):
        raise InputError(
            f"{OPTION}: {store.uri(path)} cannot be read, so the labels that run {source.key} has learned are unknown"
        ) from None
    digest = screen.digest()
    for (fold, backbone), record in source.weights.items():
        if record.screen != digest:
            raise InputError(
                f"{OPTION}: {backbone} of fold {fold} of run {source.key} was trained with an earlier screen than the run's "
                "present one; run it again to its end first"
            )
    return screen


def _task_key(run: str, step: str, fold: int, cell_type: str | None, backbone: str | None) -> str:
    name = "/".join(part for part in (step, str(fold), cell_type, backbone) if part)
    return f"{RUNS}/{run}/tasks/{name}.json"


def _tasks(store: ObjectWriter, key: str, step: str) -> list[TaskRecord]:
    keys = [path for path in store.list(f"{RUNS}/{key}/tasks/{step}/") if path.endswith(".json")]
    contents = store.get_many(keys) if keys else []
    return [TaskRecord.parse(content, store.uri(path)) for path, content in zip(keys, contents, strict=True)]
