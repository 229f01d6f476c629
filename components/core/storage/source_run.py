"""A recorded run whose pretrained weights may start another one. Reads its records; fetching weights is the step's part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from components.core.config import BackboneConfig, HeadConfig, parse
from components.core.errors import InputError
from components.core.storage.interface import MissingObjectError, ObjectWriter
from components.core.storage.manifest import Manifest
from components.core.storage.run_record import MANIFEST, RUNS, RunRecord, StepRecord, whereabouts

OPTION = "init_from"


@dataclass(frozen=True)
class SourceRun:
    """What is known of a run without fetching a weight.

    Attributes:
        key: of the run.
        backbones: its networks by name.
        head: its classifier.
        weights: records of its pretrained weights by fold and backbone.
    """

    key: str
    backbones: Mapping[str, BackboneConfig]
    head: HeadConfig
    weights: Mapping[tuple[int, str], StepRecord]


def read_source(store: ObjectWriter, key: str) -> SourceRun:
    """Reads a run's configuration and where its pretrained weights are.

    Raises:
        InputError: there is no such run, it is a prediction, or its records cannot be read.
    """
    place = f"{RUNS}/{key}"
    try:
        record = RunRecord.model_validate_json(store.get(f"{place}/run.json"))
    except MissingObjectError:
        raise InputError(f"{OPTION}: no run {key} {whereabouts(store)}") from None
    except ValidationError:
        raise InputError(
            f"{OPTION}: {store.uri(place)}/run.json is not a run's record of this version of cellsignal"
        ) from None
    said = f"{OPTION}: run {key}"
    record.check_trains(said)
    given = record.config.get("backbones")
    backbones = [parse(BackboneConfig, each, said) for each in (given if isinstance(given, list) else [])]
    keys = [path for path in store.list(f"{place}/steps/pretrain/") if path.endswith(".json")]
    weights: dict[tuple[int, str], StepRecord] = {}
    for path, content in zip(keys, store.get_many(keys) if keys else [], strict=True):
        try:
            step = StepRecord.model_validate_json(content)
        except ValidationError:
            raise InputError(f"{OPTION}: {store.uri(path)} is damaged; run {key} again") from None
        weights[step.fold, step.backbone or ""] = step
    return SourceRun(
        key,
        {backbone.name: backbone for backbone in backbones},
        parse(HeadConfig, record.config.get("head"), said),
        weights,
    )


def read_source_screen(store: ObjectWriter, source: SourceRun) -> Manifest:
    """The screen that the run's pretrained weights were trained with.

    Raises:
        InputError: it is gone, cannot be read, or is not the screen of every weight.
    """
    path = f"{RUNS}/{source.key}/{MANIFEST}"
    try:
        screen = Manifest.model_validate_json(store.get(path))
    except (MissingObjectError, ValidationError):
        raise InputError(
            f"{OPTION}: {store.uri(path)} cannot be read, so what run {source.key} has learned is not known"
        ) from None
    digest = screen.digest()
    for (fold, backbone), record in source.weights.items():
        if record.screen != digest:
            raise InputError(
                f"{OPTION}: {backbone} of fold {fold} of run {source.key} was trained with an earlier screen than the run's "
                "present one; run it again to its end first"
            )
    return screen
