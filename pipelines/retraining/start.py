"""From which configuration a challenger is trained: the given one, with experiments in the folds that the champion had them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from components.core.config import NO_EFFECT_ON_RESULTS, RunConfig, parse
from components.core.errors import InputError
from components.core.registry.champion import current_user
from components.core.registry.model_manifest import ModelManifest
from components.core.screen.folds import assign_folds
from components.core.storage.interface import ObjectStorage
from pipelines.checks import check_folds
from pipelines.retraining.records import Start, agree, now


def started(
    store: ObjectStorage,
    config: RunConfig,
    digest: str,
    champion: ModelManifest | None,
    experiments: Mapping[str, Sequence[str]],
) -> RunConfig:
    """The configuration that everybody who retrains this fingerprint uses, whatever the champion is meanwhile.

    Args:
        store: where it is agreed on.
        config: as given.
        digest: of the fingerprint.
        champion: of this moment.
        experiments: that this run trains with labels, by cell type.

    Raises:
        InputError: the record of an earlier start cannot be read.
        StepError: the store failed.
    """
    mine = with_folds(config, champion, experiments)
    known = champion.fingerprint if champion is not None and mine != config else None
    record = Start(config=json.loads(mine.model_dump_json()), fold_source=known, at=now(), by=current_user())
    agreed = parse(RunConfig, agree(store, config.name, digest, record).config, source="retraining: configuration")
    # Where and with what it runs is of whoever runs it.
    own = {name: getattr(config, name) for name in NO_EFFECT_ON_RESULTS}
    return agreed.model_copy(update=own)


def with_folds(
    config: RunConfig, champion: ModelManifest | None, experiments: Mapping[str, Sequence[str]]
) -> RunConfig:
    """The configuration with the champion's folds as `folds.known`, so that a new experiment changes no fold but its own.

    As it is given where that deals the folds alike, so that the same data make the same model; where it names folds, or has
    others than the champion or not of experiments; and where the champion's would leave a fold nothing to train or validate on.

    Args:
        config: as given.
        champion: whose folds are kept; None for none.
        experiments: that this run trains with labels, by cell type.
    """
    if champion is None or config.folds.known or config.folds.split != "experiment":
        return config
    folds = champion.run_config().folds
    if (folds.split, folds.count) != (config.folds.split, config.folds.count):
        return config
    there = {name for names in experiments.values() for name in names}
    known = {name: fold for name, fold in champion.experiment_folds.items() if name in there}
    kept = config.model_copy(update={"folds": config.folds.model_copy(update={"known": known})})
    own = config.folds
    try:
        check_folds(kept, experiments)
        alike = assign_folds(experiments, own.count, known, own.seed) == assign_folds(
            experiments, own.count, {}, own.seed
        )
    except InputError:
        return config
    return config if alike else kept
