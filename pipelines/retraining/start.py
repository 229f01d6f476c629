"""From which configuration a challenger is trained: the given one, with experiments in the folds that the champion had them in."""

from __future__ import annotations

import json
from collections.abc import Collection

from components.core.config import RunConfig, parse
from components.core.deciding import NOT_DECIDING
from components.core.registry.champion import who
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.interface import ObjectStorage
from pipelines.retraining.records import Start, agree, now


def started(
    store: ObjectStorage, config: RunConfig, digest: str, champion: ModelManifest | None, labelled: Collection[str]
) -> RunConfig:
    """The configuration that everybody who retrains this fingerprint uses, whatever the champion is meanwhile.

    Args:
        store: where it is agreed on.
        config: as given.
        digest: of the fingerprint.
        champion: of this moment.
        labelled: experiments that this run trains with labels.

    Raises:
        InputError: the record of an earlier start cannot be read.
        StepError: the store failed.
    """
    mine = with_folds(config, champion, labelled)
    known = champion.fingerprint if champion is not None and mine != config else None
    record = Start(config=json.loads(mine.model_dump_json()), fold_source=known, at=now(), by=who())
    agreed = parse(RunConfig, agree(store, config.name, digest, record).config, source="retraining: configuration")
    # Where and with what it runs is of whoever runs it.
    own = {name: getattr(config, name) for name in NOT_DECIDING}
    return agreed.model_copy(update=own)


def with_folds(config: RunConfig, champion: ModelManifest | None, labelled: Collection[str]) -> RunConfig:
    """The configuration with the champion's folds as `folds.known`, so that a new experiment changes no fold but its own.

    A configuration that names folds keeps them; so does one whose folds are others or not of experiments.

    Args:
        config: as given.
        champion: whose folds are kept; None for none.
        labelled: experiments that this run trains with labels.
    """
    if champion is None or config.folds.known or config.folds.split != "experiment":
        return config
    folds = champion.run_config().folds
    if (folds.split, folds.count) != (config.folds.split, config.folds.count):
        return config
    known = {name: fold for name, fold in champion.experiment_folds.items() if name in labelled}
    if len(set(known.values())) < min(config.folds.count, len(set(champion.experiment_folds.values()))):
        return config  # a fold would lose all that it validates on
    return config.model_copy(update={"folds": config.folds.model_copy(update={"known": known})})
