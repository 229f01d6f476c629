"""What a challenger starts from: the champion's folds, agreed on once; and the held-out experiments that tell models apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.publishing import publish
from components.core.storage.folder_store import FolderStore
from components.core.storage.runs import Learned
from pipelines.retraining.holdout import comparable
from pipelines.retraining.records import read_start
from pipelines.retraining.start import started, with_folds
from tests.components.core.registry.finished_run import KEY, FinishedRun

LABELLED = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-01", "RPE-02"]}
DEALT = {"HUVEC-01": 1, "HUVEC-02": 0, "RPE-01": 1, "RPE-02": 0}
"""Otherwise than this run would deal them by itself."""


@pytest.fixture(scope="module")
def champion(lab: FinishedRun) -> ModelManifest:
    return publish(lab.store, KEY).model.model_copy(update={"experiment_folds": DEALT})


def folds(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"folds": config.folds.model_copy(update=changes)})


def test_known_experiments_keep_the_champions_folds(lab: FinishedRun, champion: ModelManifest) -> None:
    found = with_folds(lab.config, champion, {**LABELLED, "HUVEC": [*LABELLED["HUVEC"], "HUVEC-09"]})
    assert found.folds.known == DEALT
    assert found.model_copy(update={"folds": lab.config.folds}) == lab.config
    more = {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-02", "RPE-03"]}
    fewer = with_folds(lab.config, champion, more)
    assert fewer.folds.known == {name: fold for name, fold in DEALT.items() if name != "RPE-01"}


def test_folds_that_come_out_alike_are_not_named_so_that_the_same_data_make_the_same_model(
    lab: FinishedRun, champion: ModelManifest
) -> None:
    natural = champion.model_copy(update={"experiment_folds": {"HUVEC-01": 0, "HUVEC-02": 1, "RPE-01": 0, "RPE-02": 1}})
    assert with_folds(lab.config, natural, LABELLED) == lab.config


def test_folds_that_are_not_the_champions_are_left_as_they_are(lab: FinishedRun, champion: ModelManifest) -> None:
    own = folds(lab.config, known={"HUVEC-01": 1})
    for config, known in ((own, champion), (folds(lab.config, count=3), champion), (lab.config, None)):
        assert with_folds(config, known, LABELLED) == config
    of_wells = folds(lab.config, split="well")
    assert with_folds(of_wells, champion, LABELLED) == of_wells


def test_folds_that_would_leave_a_cell_type_nothing_to_train_on_are_dealt_anew(
    lab: FinishedRun, champion: ModelManifest
) -> None:
    together = champion.model_copy(update={"experiment_folds": {**DEALT, "RPE-02": 1}})
    assert with_folds(lab.config, together, LABELLED) == lab.config
    one_fold = champion.model_copy(update={"experiment_folds": dict.fromkeys(DEALT, 0)})
    assert with_folds(lab.config, one_fold, LABELLED) == lab.config


def test_whoever_comes_first_decides_for_all_but_where_it_runs(
    lab: FinishedRun, champion: ModelManifest, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path / "own")
    first = started(store, lab.config, "0" * 64, champion, LABELLED)
    elsewhere = lab.config.model_copy(update={"local": lab.config.local.model_copy(update={"parallel_folds": 1})})
    second = started(store, elsewhere, "0" * 64, None, LABELLED)
    assert second.folds == first.folds
    assert second.folds.known == DEALT
    assert second.local.parallel_folds == 1
    assert started(store, elsewhere, "1" * 64, None, LABELLED).folds.known == {}
    record = read_start(store, lab.config.name, "0" * 64)
    assert record is not None
    assert record.fold_source == champion.fingerprint


def test_only_experiments_that_nobody_saw_and_everybody_can_name_are_compared(champion: ModelManifest) -> None:
    holdout = [
        ("HUVEC-04", "HUVEC"),
        ("HUVEC-01", "HUVEC"),
        ("HUVEC-03", "HUVEC"),
        ("U2OS-01", "U2OS"),
        ("RPE-07", "RPE"),
    ]
    found = comparable(holdout, [("the champion", champion)])
    assert found.experiments == ("HUVEC-04", "RPE-07")
    assert [remark.partition(":")[0] for remark in found.remarks] == [
        "HUVEC-01 is left out", "HUVEC-03 is left out", "U2OS-01 is left out",
    ]  # fmt: skip
    assert found.remarks[1] == f"HUVEC-03 is left out: the champion {champion.short} was trained with it"  # its images
    assert found.remarks[2] == f"U2OS-01 is left out: the champion {champion.short} does not know U2OS"
    learned = Learned(experiments=("RPE-07",), wells=("HUVEC-04_1_B03",))
    challenger = champion.model_copy(update={"taught": learned})
    both = comparable(holdout, [("the champion", champion), ("the challenger", challenger)])
    assert both.experiments == ()


def test_what_a_fold_that_was_not_trained_would_validate_on_has_been_seen(
    lab: FinishedRun, champion: ModelManifest
) -> None:
    """Its labels taught no network, but they selected checkpoints and are in the plate design."""
    of_fold_1 = Learned(experiments=tuple(name for name, fold in lab.screen.folds.items() if fold != 0))
    partial = champion.model_copy(update={"folds": {"HUVEC": (0,), "RPE": (0,)}, "taught": of_fold_1})
    left = [(name, name.partition("-")[0]) for name, fold in lab.screen.folds.items() if fold == 0]
    assert left
    assert comparable(left, [("the champion", partial)]).experiments == ()
