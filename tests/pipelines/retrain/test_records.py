"""Records of retrainings: the configuration, which keeps the champion's folds, and the outcome."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
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
from tests.components.core.registry.finished_run import KEY, FinishedRun

LABELLED = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-01", "RPE-02"]}
DEALT = {"HUVEC-01": 1, "HUVEC-02": 0, "RPE-01": 1, "RPE-02": 0}
"""Other folds than this run would assign itself."""


@pytest.fixture(scope="module")
def champion(template: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    run = template.copy_to(ObjectStore(tmp_path_factory.mktemp("store")))
    return publish(run.store, KEY).model.model_copy(update={"experiment_folds": DEALT})


def folds(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"folds": config.folds.model_copy(update=changes)})


def test_known_experiments_keep_the_champions_folds(template: FinishedRun, champion: ModelManifest) -> None:
    found = with_champions_folds(template.config, champion, {**LABELLED, "HUVEC": [*LABELLED["HUVEC"], "HUVEC-09"]})
    assert found.folds.known == DEALT
    assert found.model_copy(update={"folds": template.config.folds}) == template.config
    more = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-02", "RPE-03"]}
    fewer = with_champions_folds(template.config, champion, more)
    assert fewer.folds.known == {name: fold for name, fold in DEALT.items() if name != "RPE-01"}


def test_the_same_data_make_the_same_model(template: FinishedRun, champion: ModelManifest) -> None:
    natural = champion.model_copy(update={"experiment_folds": {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0, "RPE-02": 1}})
    assert with_champions_folds(template.config, natural, LABELLED) == template.config


def test_other_kinds_of_folds_stay(template: FinishedRun, champion: ModelManifest) -> None:
    own = folds(template.config, known={"HUVEC-01": 1})
    for config, known in ((own, champion), (folds(template.config, count=3), champion), (template.config, None)):
        assert with_champions_folds(config, known, LABELLED) == config
    of_wells = folds(template.config, split="well")
    assert with_champions_folds(of_wells, champion, LABELLED) == of_wells


def test_the_champions_folds_are_not_kept_if_they_leave_nothing_to_train_on(
    template: FinishedRun, champion: ModelManifest
) -> None:
    together = champion.model_copy(update={"experiment_folds": {**DEALT, "RPE-02": 1}})
    assert with_champions_folds(template.config, together, LABELLED) == template.config
    one_fold = champion.model_copy(update={"experiment_folds": dict.fromkeys(DEALT, 0)})
    assert with_champions_folds(template.config, one_fold, LABELLED) == template.config


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


def outcome(sources: str, looked: datetime = DAY) -> RetrainingOutcome:
    return RetrainingOutcome(
        name="tiny",
        fingerprint=Fingerprint(tables={}, experiments={}, files={}, sources=sources, images={}, config={}),
        run=f"tiny-{sources}",
        model="a" * 64,
        champion=None,
        generation=1,
        promoted=True,
        reason="better",
        looked=looked,
        at=DAY + timedelta(days=9),
        by="ada",
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


def test_rejects_a_damaged_or_newer_record(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    for content, message in (
        (b"{", "damaged, not a record of a retraining .*; delete it and retrain"),
        (b'{"schema_version": 2}', "newer than this version reads"),
    ):
        store.put("retrainings/tiny/outcomes/2026.json", content)
        with pytest.raises(InputError, match=message):
            read_latest(store, "tiny")
