"""Records of retrainings: the configuration, which keeps the champion's folds, and the outcome."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.storage.object_store import ObjectStore
from pipelines.retrain.fingerprint import Fingerprint
from pipelines.retrain.records import (
    RetrainingOutcome,
    fix_config,
    read_latest,
    retrained_runs,
    with_champions_folds,
    write_outcome,
)
from tests.components.core.registry.finished_run import FinishedRun

LABELLED = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-01", "RPE-02"]}
DEALT = {"HUVEC-01": 1, "HUVEC-02": 0, "RPE-01": 1, "RPE-02": 0}
"""Other folds than this run would assign itself."""


@pytest.fixture
def champion(model: ModelManifest) -> ModelManifest:
    return model.model_copy(update={"experiment_folds": DEALT})


def folds(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"folds": config.folds.model_copy(update=changes)})


def test_known_experiments_keep_the_champions_folds(template: FinishedRun, champion: ModelManifest) -> None:
    found = with_champions_folds(template.config, champion, {**LABELLED, "HUVEC": [*LABELLED["HUVEC"], "HUVEC-09"]})
    assert found.folds.known == DEALT
    assert found.model_copy(update={"folds": template.config.folds}) == template.config
    more = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-02", "RPE-03"]}
    fewer = with_champions_folds(template.config, champion, more)
    assert fewer.folds.known == {name: fold for name, fold in DEALT.items() if name != "RPE-01"}


def test_the_configuration_stays_if_the_champions_folds_do_not_fit(template: FinishedRun, champion: ModelManifest):
    listed = {"validation": (("HUVEC-01",), ("HUVEC-02",))}
    changed = ({"known": {"HUVEC-01": 1}}, {"count": 3}, {"split": "well"}, listed)
    for config in (folds(template.config, **changes) for changes in changed):
        assert with_champions_folds(config, champion, LABELLED) == config
    assert with_champions_folds(template.config, None, LABELLED) == template.config
    for dealt in (
        {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0, "RPE-02": 1},  # the same folds as without it
        {**DEALT, "RPE-02": 1},  # nothing to train on
        dict.fromkeys(DEALT, 0),
    ):
        model = champion.model_copy(update={"experiment_folds": dealt})
        assert with_champions_folds(template.config, model, LABELLED) == template.config


def test_the_first_attempt_fixes_the_configuration_but_not_where_it_runs(
    template: FinishedRun, champion: ModelManifest, tmp_path: Path
) -> None:
    store, config = ObjectStore(tmp_path), template.config
    first = fix_config(store, "0" * 64, with_champions_folds(config, champion, LABELLED))
    elsewhere = config.model_copy(update={"local": config.local.model_copy(update={"parallel_folds": 1})})
    second = fix_config(store, "0" * 64, elsewhere)
    assert second.folds == first.folds
    assert second.folds.known == DEALT
    assert second.local.parallel_folds == 1
    assert fix_config(store, "1" * 64, elsewhere).folds.known == {}
    store.put(f"retrainings/tiny/{'0' * 64}/config.json", b"{")
    with pytest.raises(InputError, match=r"config\.json: damaged, not a configuration; delete it and retrain"):
        fix_config(store, "0" * 64, elsewhere)


DAY = datetime(2026, 1, 2, tzinfo=UTC)


def outcome(sources: str, observed: datetime = DAY) -> RetrainingOutcome:
    return RetrainingOutcome(
        name="tiny",
        fingerprint=Fingerprint(tables={}, experiments={}, files={}, sources=sources, images={}, config={}),
        run=f"tiny-{sources}",
        model="a" * 64,
        generation=1,
        promoted=True,
        reason="better",
        observed=observed,
        at=DAY + timedelta(days=9),
    )


def test_the_latest_outcome_is_for_the_latest_state_of_the_screen(either_store: ObjectStore) -> None:
    assert read_latest(either_store, "tiny") is None
    first, second, late = (outcome(name, DAY + timedelta(hours=n)) for name, n in (("a", 0), ("b", 2), ("c", 1)))
    write_outcome(either_store, first)
    assert read_latest(either_store, "tiny") == first
    write_outcome(either_store, second)
    write_outcome(either_store, late)
    assert read_latest(either_store, "tiny") == second
    assert retrained_runs(either_store) == {"tiny-a", "tiny-b", "tiny-c"}
    again = outcome("a", DAY + timedelta(hours=3))
    write_outcome(either_store, again)
    assert read_latest(either_store, "tiny") == again
    assert read_latest(either_store, "other") is None
