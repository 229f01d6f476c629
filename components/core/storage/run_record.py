"""What a run has finished so far, in the object store under the run's key: enough to end it without its missing folds.

runs/KEY/run.json                                       configuration and lineage; of a prediction, by which model
runs/KEY/screen.json, holdout.json, holdout_labels.csv  what normalize wrote; of a prediction, what stands for the training
                                                        screen, the new plates, and no labels
runs/KEY/folds/CELL_TYPE/FOLD.json                      the fold has its logits: where the store keeps them
runs/KEY/steps/STEP/FOLD[/CELL_TYPE][/BACKBONE].json    a training step before those is finished: likewise
runs/KEY/results, failed                                how it ended: run_outcome.py

Records only point to finished outputs, so that they cost a request a task and nothing is stored twice. Together they
name all that a run keeps alive: `cellsignal store gc` removes what no run names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import InputError
from components.core.storage.digests import digest_text
from components.core.storage.interface import MissingObjectError, ObjectReader, ObjectWriter
from components.core.storage.manifest import Manifest

SCHEMA = 1
RUNS = "runs"
KEY = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
RECIPE = "recipe"
"""In the lineage of a compiled pipeline: digest of all that decides a run but its screen; see cluster_run_key."""
MANIFEST, HOLDOUT, HOLDOUT_LABELS = "screen.json", "holdout.json", "holdout_labels.csv"


class PredictionRecord(FrozenModel):
    """What makes a run a prediction: networks that are trained already name new plates."""

    model: str = Field(description="fingerprint of the model that predicts")
    address: str = Field(description="where it is published")
    experiments: tuple[str, ...] = Field(description="the wanted ones; none for all")
    any_cell_type: bool = Field(description="whether wells of a cell type are named that the model does not know")
    folds: dict[str, tuple[int, ...]] = Field(
        description="the model's folds that predict, by cell type of the new plates"
    )


class RunRecord(FrozenModel):
    """One run: a training, or a prediction."""

    record_schema: int = SCHEMA
    key: str = Field(pattern=f"^{KEY}$", description="name of the run's folder in the store")
    config: dict[str, Any] = Field(description="the whole configuration")
    lineage: dict[str, Any] = Field(description="code version, seeds, start")
    prediction: PredictionRecord | None = Field(
        None,
        exclude_if=lambda prediction: prediction is None,  # the records of trainings are as they were without it
        description="None for a training",
    )

    def check_trains(self, said: str) -> None:
        """Refuses a prediction where a training is meant.

        Args:
            said: how the user named the run.

        Raises:
            InputError: it is one.
        """
        if self.prediction is not None:
            raise InputError(
                f"{said}: is a prediction by model {self.prediction.model[:12]}, which trains nothing; give the key of a "
                "training (`cellsignal store runs` tells which those are)"
            )


class FoldRecord(FrozenModel):
    """One fold of a cell type that has its logits."""

    cell_type: str
    fold: int
    screen: str = Field(description="digest of the manifest that its networks were trained with")
    holdout: str = Field(description="digest of the held-out experiments' manifest")
    place: str = Field(pattern=r"^finished/", description="where its outputs are, for fetch_finished")


class Learned(FrozenModel):
    """Whose treatment labels weights have learned, those of the runs that they started from included."""

    experiments: tuple[str, ...] = Field((), description="whole experiments")
    wells: tuple[str, ...] = Field((), description="id_codes of single wells, where folds hold out wells")

    def __or__(self, other: Learned) -> Learned:
        """What either has learned."""
        return Learned(
            experiments=tuple(sorted({*self.experiments, *other.experiments})),
            wells=tuple(sorted({*self.wells, *other.wells})),
        )


class StepRecord(FrozenModel):
    """A finished task of a training step that others go on from."""

    step: str
    fold: int
    cell_type: str | None = None
    backbone: str | None = None
    screen: str = Field(description="digest of the manifest that its networks were trained with")
    place: str = Field(pattern=r"^finished/", description="where its outputs are, for fetch_finished")
    learned: Learned = Field(Learned(), description="by pretrain's weights, for runs that start from them")


def run_address(given: str) -> tuple[str, str]:
    """Store and key of a run's address, ADDRESS_OF_STORE/runs/KEY; the store is empty for a key alone.

    Raises:
        InputError: neither of the two.
    """
    store, _, key = given.rstrip("/").rpartition("/")
    if not store and re.fullmatch(KEY, key):
        return "", key
    store, _, folder = store.rpartition("/")
    if "://" not in given or folder != RUNS or store.endswith(("/", ":")) or not re.fullmatch(KEY, key):
        raise InputError(
            f"{given}: neither a run's key nor its address, which looks like s3://BUCKET[/PREFIX]/{RUNS}/KEY or "
            f"file:///FOLDER/{RUNS}/KEY"
        )
    return store, key


def cluster_run_key(name: str, recipe: str, source: str, fingerprint: str) -> str:
    """The key of a run on a cluster: the same however often the same pipeline is submitted on the same data.

    Args:
        name: of the configuration.
        recipe: digest of what else decides the run: configuration, code, images.
        source: address of the screen.
        fingerprint: of its files.
    """
    return f"{name}-{digest_text(json.dumps([recipe, source.rstrip('/'), fingerprint]))[:12]}"


def predicting_name(name: str) -> str:
    """What predictions are called on a cluster, in keys and in KFP, so that they are told from trainings.

    Args:
        name: of the configuration.
    """
    return f"{name}-predict"


def lineage_of(store: ObjectReader, key: str) -> dict[str, Any]:
    """The lineage that a run was recorded with; empty where there is no record that can be read."""
    try:
        return dict(RunRecord.model_validate_json(store.get(f"{RUNS}/{key}/run.json")).lineage)
    except (MissingObjectError, ValidationError):
        return {}


def write_run(
    store: ObjectWriter, record: RunRecord, screen: bytes, holdout: bytes, holdout_labels: bytes | None
) -> None:
    """Writes what a run starts from; run.json comes last, so that a record is whole.

    Args:
        store: where the run's plates are.
        record: of the run.
        screen: content of the screen's manifest.
        holdout: content of the held-out experiments' manifest.
        holdout_labels: their labels, CSV; None for a prediction, which knows none.
    """
    folder = f"{RUNS}/{record.key}"
    for name, content in ((MANIFEST, screen), (HOLDOUT, holdout), (HOLDOUT_LABELS, holdout_labels)):
        if content is not None:
            store.put(f"{folder}/{name}", content)
    store.put(f"{folder}/run.json", record.model_dump_json(indent=1).encode())


def record_fold(
    store: ObjectWriter, screen: Manifest, holdout: Manifest, cell_type: str, fold: int, place: str
) -> None:
    """Notes that a fold has its logits; does nothing where the manifest is of no run (a step by hand).

    Args:
        store: where finished outputs are kept.
        screen: the manifest that the fold was trained with; it names the run.
        holdout: the held-out experiments.
        cell_type: whose logits.
        fold: the fold.
        place: where the store keeps the outputs.
    """
    if not screen.run:
        return
    record = FoldRecord(cell_type=cell_type, fold=fold, screen=screen.digest(), holdout=holdout.digest(), place=place)
    store.put(f"{RUNS}/{screen.run}/folds/{cell_type}/{fold}.json", record.model_dump_json(indent=1).encode())


def record_step(
    store: ObjectWriter,
    screen: Manifest,
    place: str,
    step: str,
    fold: int,
    cell_type: str | None = None,
    backbone: str | None = None,
    learned: Learned | None = None,
) -> None:
    """Notes that a task is finished; does nothing where the manifest is of no run (a step by hand).

    Args:
        store: where finished outputs are kept.
        screen: the manifest that was trained with; it names the run.
        place: where the store keeps the outputs.
        step: whose task.
        fold: of the task.
        cell_type: of the task, where it has one.
        backbone: of the task, where it has one.
        learned: whose labels its weights have learned, where they may start another run.
    """
    if not screen.run:
        return
    record = StepRecord(
        step=step, fold=fold, cell_type=cell_type, backbone=backbone, screen=screen.digest(), place=place,
        learned=learned or Learned(),
    )  # fmt: skip
    name = "/".join(part for part in (step, str(fold), cell_type, backbone) if part)
    store.put(f"{RUNS}/{screen.run}/steps/{name}.json", record.model_dump_json(indent=1).encode())


def runs_there(keys: Iterable[str]) -> str:
    """The keys of known runs, in words."""
    known = sorted(keys)
    return f"runs there: {', '.join(known)}" if known else "there are no runs"


def whereabouts(store: ObjectWriter) -> str:
    """What to say of a run that is not in a store: which are, and how one of another store is named."""
    there = runs_there({path.split("/")[1] for path in store.list(f"{RUNS}/")})
    return (
        f"below {store.uri('')} ({there}); one in another store is s3://BUCKET/PREFIX/{RUNS}/KEY or "
        f"file:///FOLDER/{RUNS}/KEY"
    )


def read_run(store: ObjectWriter, key: str, folder: Path, said: str = "--run") -> RunRecord:
    """Reads a training's record, and brings its manifests and held-out labels into a folder.

    Args:
        store: where the run's plates are.
        key: of the run.
        folder: receives screen.json, holdout.json and holdout_labels.csv.
        said: how the user named the key, for errors.

    Raises:
        InputError: there is no such run, it is a prediction, or its record is damaged or of a newer version.
    """
    place = f"{RUNS}/{key}"
    try:
        record = _parse(store.get(f"{place}/run.json"), store.uri(place))
        record.check_trains(f"{said} {key}")
        for name in (MANIFEST, HOLDOUT, HOLDOUT_LABELS):
            (folder / name).write_bytes(store.get(f"{place}/{name}"))
    except MissingObjectError:
        raise InputError(f"{said} {key}: no such run {whereabouts(store)}") from None
    return record


def _parse(content: bytes, place: str) -> RunRecord:
    try:
        newer = json.loads(content).get("record_schema", 0) > SCHEMA
        record = None if newer else RunRecord.model_validate_json(content)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{place}/run.json: not a run's record ({type(error).__name__}); run again") from None
    if record is None:
        raise InputError(f"{place}/run.json: of a newer version of cellsignal; upgrade")
    return record


def finished_folds(store: ObjectWriter, key: str, screen: Manifest, holdout: Manifest) -> dict[str, list[FoldRecord]]:
    """The folds that have logits for these manifests, by cell type, ascending; those of an earlier screen do not count.

    Args:
        store: where the run's records are.
        key: of the run.
        screen: the run's manifest.
        holdout: the run's held-out experiments.

    Raises:
        InputError: a record is damaged.
    """
    keys = [k for k in store.list(f"{RUNS}/{key}/folds/") if k.endswith(".json")]
    found: dict[str, list[FoldRecord]] = {}
    for path, content in zip(keys, _all(store, keys), strict=True):
        try:
            record = FoldRecord.model_validate_json(content)
        except ValidationError:
            raise InputError(f"{store.uri(path)}: not a fold's record; run the same command again") from None
        if (record.screen, record.holdout) == (screen.digest(), holdout.digest()):
            found.setdefault(record.cell_type, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record.fold)
    return found


def _all(store: ObjectReader, keys: list[str]) -> list[bytes]:
    return store.get_many(keys) if keys else []
