"""The wells that a plan counts are those that training gets: from tables, and from the size under `simulate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.fold_data import fold_wells
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.site_table import SiteTable
from components.core.storage.manifest import Manifest
from components.normalize.config import NormalizeConfig
from components.normalize.step import run
from pipelines.plan.screens import expected_screen, fold_masks, screen_wells
from tests.pipelines.tiny_run import only_huvec
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


def tiny(**screen: object) -> RunConfig:
    return RunConfig(screen=CONFIG.screen.model_copy(update=screen), folds=CONFIG.folds)


@pytest.mark.parametrize("controls", ["all", "training"])
@pytest.mark.parametrize("holdout", [(), ("HUVEC-02",)])
@pytest.mark.parametrize("split", ["experiment", "well"])
def test_folds_have_the_wells_that_training_gets(tmp_path: Path, controls: str, holdout: tuple[str, ...], split: str):
    TinyScreen(
        tmp_path / "screen", more=("HUVEC-04",), imaged=("HUVEC-01", "HUVEC-02", "HUVEC-03", "HUVEC-04", "RPE-01")
    )
    config = RunConfig(
        screen=CONFIG.screen.model_copy(update={"controls": controls, "holdout_experiments": holdout}),
        folds=CONFIG.folds.model_copy(update={"split": split}),
        prior={"enabled": split == "experiment"},
    )
    paths = [tmp_path / name for name in ("screen.json", "holdout.json", "labels.csv")]
    run(config.section(NormalizeConfig), tmp_path / "screen", MemoryStore(), *paths)
    table = SiteTable.of(Manifest.read(paths[0]))
    wells = screen_wells(config, tmp_path / "screen")
    assert int((~wells.holdout_W).sum()) == table.wells
    compared = 0
    for fold in range(config.folds.count):
        for cell_type in (None, "HUVEC", "RPE"):
            try:
                expected = fold_wells(table, fold, config.screen.controls, cell_type)
            except InputError as error:
                with pytest.raises(InputError, match=str(error)[:60]):
                    fold_masks(config, wells, fold, cell_type)
                continue
            found = fold_masks(config, wells, fold, cell_type)
            # The manifest's wells are the screen's without the held-out ones, in the same order.
            for name in ("training", "validation", "unlabelled"):
                rows = np.flatnonzero(getattr(found, name)[~wells.holdout_W])
                assert rows.tolist() == getattr(expected, name).tolist(), (fold, cell_type, name)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", ["demo", "rxrx1"])
def test_without_tables_the_screen_is_the_simulated_one_with_every_well(name: str):
    config = RunConfig.load(name, ["simulate.missing_wells=0", "simulate.missing_sites=0"])
    if name == "rxrx1":  # a plate of its size suffices
        config = RunConfig.load(
            name,
            [
                "simulate.missing_wells=0",
                "simulate.labelled={U2OS: 1}",
                "simulate.unlabelled={U2OS: 1}",
                "screen.holdout_experiments=[]",
            ],
        )
    designed = {
        (plate.experiment, plate.number, plate.cell_type, plate.labelled, well.well, well.well_type)
        for plate in design_screen(config.section(SimulationSettings))
        for well in plate.wells
    }
    expected = {
        (plate.experiment, plate.plate, plate.cell_type, plate.labelled, well.well, well.well_type)
        for plate in expected_screen(config).plates
        for well in plate.wells
    }
    assert expected == designed


def test_a_cell_type_that_the_screen_lacks_is_named(tmp_path: Path):
    only_huvec(TinyScreen(tmp_path / "screen", imaged=()))
    with pytest.raises(InputError, match=r"screen\.cell_types: the screen has no RPE"):
        screen_wells(tiny(), tmp_path / "screen")


def test_a_held_out_experiment_that_the_simulated_screen_lacks_is_named():
    with pytest.raises(InputError, match=r"holdout_experiments: HUVEC-99 is not a labelled experiment"):
        screen_wells(RunConfig.load("demo", ["screen.holdout_experiments=[HUVEC-99]"]), None)
