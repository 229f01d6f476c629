"""How many wells of which kind each fold and cell type has, from a screen's tables or, without them, as the simulator lays it out.

Mirrors core.learning.fold_data.fold_wells, which works on a packed screen. Reads tables, never images. W wells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.screen.folds import assign_folds, deal_wells, dealt_wells
from components.core.screen.layouts import read_screen
from components.core.screen.simulation.plate_design import NEGATIVE_WELL, PLATES, POSITIVE_WELLS, treatment_wells
from components.core.screen.wells import Plate, Screen, Well, natural_key
from components.core.storage.manifest import Vocabulary


@dataclass(frozen=True, eq=False)
class ScreenWells:
    """The wells of a screen as flat arrays.

    Attributes:
        source: where they are from, for people.
        screen: the tables.
        sites: imaged sites of every well: tables do not say which few are missing.
        cell_types: names; cell_type_W indexes it.
        domain_W: number of the domain of each well by kind: cell_type, experiment, plate.
        fold_W: the fold that validates on the well; -1 where none does.
        treatment_W: whether it is no control.
        labelled_W: whether its experiment is, held-out ones not.
        holdout_W: whether no step but prediction reads it.
    """

    source: str
    screen: Screen
    sites: int
    cell_types: tuple[str, ...]
    domain_W: dict[str, NDArray[np.intp]]
    fold_W: NDArray[np.intp]
    treatment_W: NDArray[np.bool_]
    labelled_W: NDArray[np.bool_]
    holdout_W: NDArray[np.bool_]

    def of_type(self, cell_type: str) -> NDArray[np.bool_]:
        """Which wells are of a cell type, (W,)."""
        known = self.cell_types.index(cell_type) if cell_type in self.cell_types else -1
        return np.asarray(self.domain_W["cell_type"] == known)

    @property
    def classes(self) -> int:
        """K, controls included."""
        return len(self.screen.vocabulary.classes)

    @property
    def experiments(self) -> int:
        """How many experiments there are, held-out ones included."""
        return len({plate.experiment for plate in self.screen.plates})


@dataclass(frozen=True, eq=False)
class FoldMasks:
    """Wells of one fold, (W,): those that train, validate, and are unlabelled treatments."""

    training: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    unlabelled: NDArray[np.bool_]


def screen_wells(config: RunConfig, folder: Path | None) -> ScreenWells:
    """The wells that a run of this configuration works on.

    Args:
        config: cell types, sites, folds, and the simulated screen's size.
        folder: a screen in the Kaggle layout; None for the size under `simulate`.

    Raises:
        InputError: something is wrong with the tables, or they do not fit the folds.
    """
    if folder is None:
        screen, source = expected_screen(config), "the sizes under simulate, no well missing (no --screen)"
    else:
        screen, source = read_screen(folder, config.screen), f"the tables in {folder}"
    return flatten(config, screen, source)


def flatten(config: RunConfig, screen: Screen, source: str) -> ScreenWells:
    """A screen's wells with their folds, as normalize deals them."""
    cell_types = tuple(sorted({plate.cell_type for plate in screen.plates}))
    for cell_type in config.screen.cell_types:
        if cell_type not in cell_types:
            raise InputError(
                f"screen.cell_types: the screen has no {cell_type}; take it off the list, or add experiments"
            )
    fold_of = _folds(config, screen)
    experiments = list(dict.fromkeys(plate.experiment for plate in screen.plates))
    number = {name: n for n, name in enumerate(experiments)}
    counts = [len(plate.wells) for plate in screen.plates]

    def of_plates(values: Iterable[int | bool]) -> NDArray[np.intp]:
        return np.repeat(np.array(list(values), dtype=np.intp), counts)

    treatment_W = np.array([w.well_type == "treatment" for plate in screen.plates for w in plate.wells], dtype=bool)
    labelled_W = of_plates(plate.labelled and not plate.holdout for plate in screen.plates).astype(bool)
    if config.folds.split == "well":
        fold_W = np.array(
            [fold_of.get(well.id_code, -1) for plate in screen.plates for well in plate.wells], dtype=np.intp
        )
    else:
        fold_W = of_plates(fold_of.get(plate.experiment, -1) for plate in screen.plates)
    return ScreenWells(
        source=source,
        screen=screen,
        sites=config.screen.sites,
        cell_types=cell_types,
        domain_W={
            "cell_type": of_plates(cell_types.index(plate.cell_type) for plate in screen.plates),
            "experiment": of_plates(number[plate.experiment] for plate in screen.plates),
            "plate": of_plates(range(len(screen.plates))),
        },
        fold_W=fold_W,
        treatment_W=treatment_W,
        labelled_W=labelled_W,
        holdout_W=of_plates(plate.holdout for plate in screen.plates).astype(bool),
    )


def fold_masks(config: RunConfig, wells: ScreenWells, fold: int, cell_type: str | None = None) -> FoldMasks:
    """Splits a screen's wells for one fold, as fold_wells does.

    Args:
        config: whose controls join training.
        wells: the screen.
        fold: the fold whose experiments, or wells, validate.
        cell_type: only this one's wells; None for all.

    Raises:
        InputError: nothing to train on.
    """
    read_W = ~wells.holdout_W
    labelled_W = read_W & wells.treatment_W & wells.labelled_W
    supervised_W = labelled_W & (wells.fold_W >= 0) & (wells.fold_W != fold)
    control_W = read_W & ~wells.treatment_W
    if config.screen.controls == "training":
        experiment_W = wells.domain_W["experiment"]
        control_W &= np.isin(experiment_W, experiment_W[supervised_W])
    chosen_W = np.ones(len(read_W), dtype=bool) if cell_type is None else wells.of_type(cell_type)
    if not (chosen_W & supervised_W).any():
        of_type = f" for cell type {cell_type}" if cell_type else ""
        raise InputError(
            f"fold {fold}: no labelled treatment wells to train on{of_type}; use fewer folds or more labelled experiments"
        )
    return FoldMasks(
        training=chosen_W & (supervised_W | control_W),
        validation=chosen_W & labelled_W & (wells.fold_W == fold),
        unlabelled=chosen_W & read_W & wells.treatment_W & ~wells.labelled_W,
    )


def expected_screen(config: RunConfig) -> Screen:
    """The screen that `simulate` describes, with every well and site there.

    Raises:
        InputError: a cell type or held-out experiment that it has not.
    """
    simulate, held_out = config.simulate, config.screen.holdout_experiments
    treated = treatment_wells(config.seed, simulate.treatments_per_group)
    positives = POSITIVE_WELLS[: simulate.positive_controls]
    sirnas = tuple(f"sirna_{k}" for k in range(PLATES * len(treated)))
    vocabulary = Vocabulary(
        treatments=sirnas, positives=tuple(f"control_{k}" for k in range(len(positives))), negatives=("UNTREATED",)
    )
    plates = []
    for cell_type in sorted({*simulate.labelled, *simulate.unlabelled}):
        if cell_type not in config.screen.cell_types:
            raise InputError(f"simulate names {cell_type!r}, which is not in screen.cell_types; correct one of them")
        labelled_count = simulate.labelled.get(cell_type, 0)
        for index in range(labelled_count + simulate.unlabelled.get(cell_type, 0)):
            experiment, labelled = f"{cell_type}-{index + 1:02d}", index < labelled_count
            for plate in range(PLATES):
                name = f"{experiment}_{plate + 1}"
                group = sirnas[plate * len(treated) : (plate + 1) * len(treated)]
                wells = [Well(f"{name}_{NEGATIVE_WELL}", NEGATIVE_WELL, "negative_control", "UNTREATED")]
                wells += [
                    Well(f"{name}_{well}", well, "positive_control", f"control_{k}") for k, well in enumerate(positives)
                ]
                wells += [
                    Well(f"{name}_{well}", well, "treatment", sirna if labelled else None)
                    for well, sirna in zip(treated, group, strict=True)
                ]
                folder = f"{'train' if labelled else 'test'}/{experiment}"
                holdout = experiment in held_out
                plates.append(Plate(experiment, plate + 1, cell_type, labelled, holdout, folder, tuple(wells)))
    known = {plate.experiment for plate in plates if plate.labelled}
    for experiment in held_out:
        if experiment not in known:
            raise InputError(
                f"screen.holdout_experiments: {experiment} is not a labelled experiment of the simulated screen; "
                f"those are {', '.join(sorted(known, key=natural_key))}"
            )
    return Screen(tuple(plates), vocabulary)


def _folds(config: RunConfig, screen: Screen) -> dict[str, int]:
    """Fold by experiment, or by id_code where single wells are held out."""
    folds = config.folds
    if folds.split == "well":
        return deal_wells(dealt_wells(screen), folds.count, folds.seed)
    return assign_folds(screen.training_experiments(), folds.count, folds.known, folds.seed)
