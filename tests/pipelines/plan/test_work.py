"""Site passes of a plan against real steps that count every image, and how the counts of wells follow the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.dag import DagTask
from pipelines.plan.work import screen_wells, task_work
from tests.components.core.learning.tiny_networks import RUN, SLIM, SMALL
from tests.pipelines.plan.counted_run import CountedScreen, Counts, counted
from tests.tiny_screen import TinyScreen

WIDTH = {SMALL.name: SMALL.exit[-1], SLIM.name: SLIM.exit[-1]}
WITHIN = 0.2
"""Batches of the tiny screen are incomplete or filled up, which the plan does not count."""


def changed(**sections: dict[str, object]) -> RunConfig:
    data = RUN.model_dump()
    for name, fields in sections.items():
        data[name] = {**data[name], **fields}
    return RunConfig.model_validate(data)


def compare(config: RunConfig, screen: CountedScreen, task: DagTask, counts: Counts) -> None:
    for name, planned in task_work(config, screen_wells(config, screen.tables), task).items():
        assert planned.training == pytest.approx(counts.student[WIDTH[name]], rel=WITHIN), (task.name, name)
        assert planned.forward == pytest.approx(counts.forward[WIDTH[name]], rel=WITHIN), (task.name, name)


@pytest.mark.parametrize(
    "config",
    [
        changed(mean_teacher={"pseudo_labels": "none"}),
        changed(
            mean_teacher={"pseudo_labels": "none"},
            screen={"holdout_experiments": ("HUVEC-04",)},
            embeddings={"views": 2},
        ),
    ],
    ids=["as configured", "held-out experiment, embeddings in views"],
)
def test_steps_take_about_the_planned_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig):
    screen, bases = CountedScreen(tmp_path, config), []
    for backbone in WIDTH:
        with monkeypatch.context() as patch:
            counts = counted(patch)
            bases.append(screen.pretrain(0, backbone))
        compare(config, screen, DagTask(0, "pretrain", 0, None, backbone), counts)
    with monkeypatch.context() as patch:
        counts = counted(patch)
        bases = [screen.finetune(0, "HUVEC", bases)]
    compare(config, screen, DagTask(0, "finetune", 0, "HUVEC"), counts)
    with monkeypatch.context() as patch:
        counts = counted(patch)
        screen.infer(0, "HUVEC", bases)
    compare(config, screen, DagTask(0, "infer", 0, "HUVEC"), counts)


def test_every_labelled_well_validates_in_one_fold():
    config = RunConfig.load("rxrx1")
    wells = screen_wells(config, None)
    labelled = sum(e.treatments for e in wells.experiments if e.labelled)
    assert sum(wells.fold(fold).validation for fold in range(config.folds.count)) == labelled
    assert all(
        sum(wells.fold(fold, cell_type).training for cell_type in config.screen.cell_types) == wells.fold(fold).training
        for fold in range(config.folds.count)
    )


def test_controls_of_training_experiments_alone():
    everywhere = screen_wells(RunConfig.load("rxrx1"), None).fold(0)
    training = screen_wells(RunConfig.load("rxrx1", ["screen.controls=training"]), None).fold(0)
    assert training.training < everywhere.training
    assert training.validation == everywhere.validation


def test_tables_are_counted_by_experiment(tmp_path: Path):
    screen = TinyScreen(tmp_path / "screen", more=("HUVEC-04",), imaged=("HUVEC-01",))
    wells = screen_wells(RUN, screen.root)
    assert wells.count() == sum(e.wells for e in wells.experiments)
    assert {e.name: e.labelled for e in wells.experiments}["HUVEC-04"]


def test_a_fold_without_training_wells_is_refused():
    config = RunConfig.load(
        "rxrx1",
        ["simulate.labelled={HUVEC: 2, RPE: 1, HEPG2: 1, U2OS: 1}", "folds.count=2", "screen.holdout_experiments=[]"],
    )
    wells = screen_wells(config, None)
    with pytest.raises(InputError, match="no labelled treatment wells to train on for cell type"):
        [wells.fold(fold, cell_type) for fold in range(2) for cell_type in config.screen.cell_types]
