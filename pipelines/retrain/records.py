"""What the store keeps of retrainings: the challenger's configuration, fixed by the first attempt, and the outcomes.

retrainings/NAME/FINGERPRINT/config.json         configuration that every attempt of this fingerprint uses
retrainings/NAME/outcomes/TIME-FINGERPRINT.json  an outcome; by TIME the screen was in the state of the fingerprint

The outcome with the latest time counts, whichever process was the first to finish.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC

from pydantic import AwareDatetime, Field

from components.core.config import NO_EFFECT_ON_RESULTS, RunConfig, parse
from components.core.errors import InputError, MissingObjectError
from components.core.registry.model_manifest import ModelManifest
from components.core.screen.folds import assign_folds
from components.core.storage.object_store import ObjectStore
from components.core.stored_record import StoredRecord
from pipelines.checks import check_folds
from pipelines.retrain.fingerprint import Fingerprint

RETRAININGS, OUTCOMES = "retrainings", "outcomes"


class RetrainingOutcome(StoredRecord):
    """The outcome of a retraining."""

    KIND = "record of a retraining"
    IF_DAMAGED = "delete it and retrain"

    name: str = Field(description="the configuration's")
    fingerprint: Fingerprint
    run: str = Field(description="key of the challenger's run")
    model: str = Field(description="fingerprint of the challenger")
    generation: int = Field(description="of the champion afterwards; 0 for none")
    promoted: bool = Field(description="whether the challenger became the champion")
    reason: str = Field(description="one line")
    observed: AwareDatetime = Field(description="when the screen was in the state of the fingerprint")
    at: AwareDatetime = Field(description="when it was decided")


def read_latest(store: ObjectStore, name: str) -> RetrainingOutcome | None:
    """The outcome of a configuration for the latest state of the screen; None if there is none. InputError if it is damaged."""
    keys = store.list(f"{RETRAININGS}/{name}/{OUTCOMES}/")
    return RetrainingOutcome.load(store, max(keys)) if keys else None


def write_outcome(store: ObjectStore, outcome: RetrainingOutcome) -> None:
    """Adds an outcome."""
    time = f"{outcome.observed.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
    store.put(f"{RETRAININGS}/{outcome.name}/{OUTCOMES}/{time}-{outcome.fingerprint.digest}.json", outcome.to_json())


def retrained_runs(store: ObjectStore) -> set[str]:
    """Keys of the challengers' runs; records that cannot be read are left out."""
    keys = [key for key in store.list(f"{RETRAININGS}/") if f"/{OUTCOMES}/" in key]
    found = set()
    for key, content in store.get_present(keys).items():
        with suppress(InputError):
            found.add(RetrainingOutcome.parse(content, store.uri(key)).run)
    return found


def fix_config(store: ObjectStore, digest: str, config: RunConfig) -> RunConfig:
    """The configuration of every attempt of a retraining: the first attempt's, even if the champion changes in between.

    So an attempt that resumes finds the same run under the same key. `config` is this attempt's, `digest` the fingerprint's.
    InputError if the stored configuration cannot be read.
    """
    path = f"{RETRAININGS}/{config.name}/{digest}/config.json"
    if store.put_if_version(path, config.model_dump_json(indent=1).encode()):
        return config
    try:
        fixed = parse(RunConfig, json.loads(store.get(path)), source=store.uri(path))
    except (MissingObjectError, ValueError):
        raise InputError(f"{store.uri(path)}: damaged, not a configuration; delete it and retrain") from None
    # Each attempt decides where and with which resources it runs.
    return fixed.model_copy(update={name: getattr(config, name) for name in NO_EFFECT_ON_RESULTS})


def with_champions_folds(
    config: RunConfig, champion: ModelManifest | None, experiments: Mapping[str, Sequence[str]]
) -> RunConfig:
    """The configuration with the champion's folds as `folds.known`, so that a new experiment changes no fold but its own.

    Unchanged if it would assign the same folds anyway, so that the same data make the same model; if it sets `folds.known`, or has
    another number or kind of folds than the champion; if either lists them (`folds.validation`); and if the champion's would leave
    a fold nothing to train or validate on.
    `experiments` are those that this run trains with labels, by cell type.
    """
    if champion is None or config.folds.known or config.folds.split != "experiment":
        return config
    folds = champion.run_config().folds
    if (folds.split, folds.count) != (config.folds.split, config.folds.count):
        return config
    if folds.validation or config.folds.validation:
        return config
    present = {name for names in experiments.values() for name in names}
    known = {name: fold for name, fold in champion.experiment_folds.items() if name in present}
    kept = config.model_copy(update={"folds": config.folds.model_copy(update={"known": known})})
    count, seed = config.folds.count, config.folds.seed
    try:
        check_folds(kept, experiments)
        same = assign_folds(experiments, count, known, seed) == assign_folds(experiments, count, {}, seed)
    except InputError:
        return config
    return config if same else kept
