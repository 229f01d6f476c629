"""Records of retrainings: the start, which keeps the champion's folds, and the outcome."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.object_store import ObjectStore
from pipelines.retrain.records import (
    RetrainingStart,
    read_latest,
    read_outcome,
    start,
    with_champions_folds,
    write_outcome,
)
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.retrain.outcomes import DAY, outcome

LABELLED = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-01", "RPE-02"]}
DEALT = {"HUVEC-01": 1, "HUVEC-02": 0, "RPE-01": 1, "RPE-02": 0}
"""Other folds than this run would assign itself."""


@pytest.fixture(scope="module")
def champion(lab: FinishedRun) -> ModelManifest:
    return publish(lab.store, KEY).model.model_copy(update={"experiment_folds": DEALT})


def folds(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"folds": config.folds.model_copy(update=changes)})


def test_known_experiments_keep_the_champions_folds(lab: FinishedRun, champion: ModelManifest) -> None:
    found = with_champions_folds(lab.config, champion, {**LABELLED, "HUVEC": [*LABELLED["HUVEC"], "HUVEC-09"]})
    assert found.folds.known == DEALT
    assert found.model_copy(update={"folds": lab.config.folds}) == lab.config
    more = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-02", "RPE-03"]}
    fewer = with_champions_folds(lab.config, champion, more)
    assert fewer.folds.known == {name: fold for name, fold in DEALT.items() if name != "RPE-01"}


def test_the_same_data_make_the_same_model(lab: FinishedRun, champion: ModelManifest) -> None:
    natural = champion.model_copy(update={"experiment_folds": {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0, "RPE-02": 1}})
    assert with_champions_folds(lab.config, natural, LABELLED) == lab.config


def test_other_kinds_of_folds_stay(lab: FinishedRun, champion: ModelManifest) -> None:
    own = folds(lab.config, known={"HUVEC-01": 1})
    for config, known in ((own, champion), (folds(lab.config, count=3), champion), (lab.config, None)):
        assert with_champions_folds(config, known, LABELLED) == config
    of_wells = folds(lab.config, split="well")
    assert with_champions_folds(of_wells, champion, LABELLED) == of_wells


def test_the_champions_folds_are_not_kept_if_they_leave_nothing_to_train_on(
    lab: FinishedRun, champion: ModelManifest
) -> None:
    together = champion.model_copy(update={"experiment_folds": {**DEALT, "RPE-02": 1}})
    assert with_champions_folds(lab.config, together, LABELLED) == lab.config
    one_fold = champion.model_copy(update={"experiment_folds": dict.fromkeys(DEALT, 0)})
    assert with_champions_folds(lab.config, one_fold, LABELLED) == lab.config


def test_the_first_start_fixes_the_configuration_but_not_where_it_runs(
    lab: FinishedRun, champion: ModelManifest, tmp_path: Path
) -> None:
    store = ObjectStore(tmp_path / "own")
    first = start(store, lab.config, "0" * 64, champion, LABELLED)
    elsewhere = lab.config.model_copy(update={"local": lab.config.local.model_copy(update={"parallel_folds": 1})})
    second = start(store, elsewhere, "0" * 64, None, LABELLED)
    assert second.folds == first.folds
    assert second.folds.known == DEALT
    assert second.local.parallel_folds == 1
    assert start(store, elsewhere, "1" * 64, None, LABELLED).folds.known == {}
    path = f"retrainings/{lab.config.name}/{'0' * 64}/start.json"
    record = RetrainingStart.parse(store.get(path), path)
    assert record.fold_source == champion.fingerprint


def test_the_latest_outcome_is_for_the_latest_state_of_the_screen(either_store: ObjectStore) -> None:
    assert read_latest(either_store, "tiny") is None
    first, second, late = (outcome(name, DAY + timedelta(hours=n)) for name, n in (("a", 0), ("b", 2), ("c", 1)))
    write_outcome(either_store, first)
    assert read_latest(either_store, "tiny") == first
    write_outcome(either_store, second)
    write_outcome(either_store, late)
    assert read_latest(either_store, "tiny") == second
    assert read_outcome(either_store, "tiny", late.fingerprint.digest) == late
    again = outcome("a", DAY + timedelta(hours=3))
    write_outcome(either_store, again)
    assert read_latest(either_store, "tiny") == again
    assert read_latest(either_store, "other") is None


def test_rejects_a_damaged_or_newer_record(either_store: ObjectStore) -> None:
    path = "retrainings/tiny/latest.json"
    for content, said in (
        (b"{", "damaged, not a record of a retraining; delete it and retrain"),
        (b'{"schema_version": 2}', "newer than this version reads"),
    ):
        either_store.put(path, content)
        with pytest.raises(InputError, match=said):
            read_latest(either_store, "tiny")
        with pytest.raises(InputError, match=said):
            write_outcome(either_store, outcome("a", DAY))
