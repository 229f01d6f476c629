"""How much work a task is: the screen's wells by experiment, and the site passes of each task. Pure arithmetic.

A site pass is one image through one network once. Counts follow core.learning: an epoch of pretraining sees each training well
once, a random site of it; batches that are filled up or left incomplete are not counted, which is within a few percent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.core.config import CHANNELS, RunConfig
from components.core.errors import InputError
from components.core.learning.network_size import NetworkSize
from components.core.learning.schedules import CycleSchedule
from components.core.screen.folds import assign_folds
from components.core.screen.layouts import read_screen
from pipelines.dag import DagTask
from pipelines.plan.rates import Rates

PLATES = 4
"""Plates of an experiment (RxRx1), for a screen that is not there yet."""


@dataclass(frozen=True)
class ExperimentWells:
    """The wells of one experiment.

    Attributes:
        name: the experiment.
        cell_type: its cell type.
        labelled: whether its treatments are labelled and it is not held out.
        holdout: whether only prediction reads it.
        fold: the fold that validates on it; None for none.
        plates: number of plates.
        treatments: number of treatment wells.
        controls: number of control wells.
    """

    name: str
    cell_type: str
    labelled: bool
    holdout: bool
    fold: int | None
    plates: int
    treatments: int
    controls: int

    @property
    def wells(self) -> int:
        """All of its wells."""
        return self.treatments + self.controls


@dataclass(frozen=True)
class FoldCounts:
    """Numbers of wells of one fold: those that train, validate, and are unlabelled treatments."""

    training: int
    validation: int
    unlabelled: int


@dataclass(frozen=True)
class ScreenWells:
    """The wells of a screen.

    Attributes:
        source: where the numbers come from, as text.
        experiments: all of them, held-out ones included.
        sites: imaged sites of a well.
        classes: K, controls included.
        by_well: None if folds hold out experiments; else the number of folds, each of which holds out a share of the wells.
        all_controls: whether controls of all experiments join training, not only of training experiments.
    """

    source: str
    experiments: tuple[ExperimentWells, ...]
    sites: int
    classes: int
    by_well: int | None
    all_controls: bool

    def count(self, cell_type: str | None = None) -> int:
        """Number of wells, of one cell type or all."""
        return sum(e.wells for e in self._of_type(cell_type))

    def predicted(self, fold: int, cell_type: str) -> int:
        """Wells of a cell type whose labels the fold's networks never saw: validation, unlabelled, and held out."""
        of_fold = self.fold(fold, cell_type)
        held_out = sum(e.treatments for e in self._of_type(cell_type) if e.holdout)
        return of_fold.validation + of_fold.unlabelled + held_out

    @property
    def plates(self) -> int:
        """Number of plates."""
        return sum(e.plates for e in self.experiments)

    def fold(self, fold: int, cell_type: str | None = None) -> FoldCounts:
        """Splits the wells for one fold, as core.learning.fold_data does.

        Raises:
            InputError: there is nothing to train on.
        """
        read = [e for e in self._of_type(cell_type) if not e.holdout]
        labelled = [e for e in read if e.labelled]
        if self.by_well is None:
            supervised = sum(e.treatments for e in labelled if e.fold not in (None, fold))
            validation = sum(e.treatments for e in labelled if e.fold == fold)
            trains = [e for e in labelled if e.fold not in (None, fold)]
        else:
            total = sum(e.treatments for e in labelled)
            validation = round(total / self.by_well)
            supervised, trains = total - validation, labelled
        if not supervised:
            suffix = f" for cell type {cell_type}" if cell_type else ""
            raise InputError(
                f"fold {fold}: no labelled treatment wells to train on{suffix}; use fewer folds or more labelled experiments"
            )
        controls = sum(e.controls for e in (read if self.all_controls else trains))
        unlabelled = sum(e.treatments for e in read if not e.labelled)
        return FoldCounts(supervised + controls, validation, unlabelled)

    def _of_type(self, cell_type: str | None) -> list[ExperimentWells]:
        return [e for e in self.experiments if cell_type in (None, e.cell_type)]


def screen_wells(config: RunConfig, folder: Path | None) -> ScreenWells:
    """The wells that a run works on, from a screen's tables or from the sizes under `simulate`.

    Args:
        config: cell types, sites, folds, and the simulated screen's size.
        folder: a screen; None for a simulated one.

    Raises:
        InputError: the tables are wrong, or do not fit the folds.
    """
    found: list[tuple[str, str, bool, bool, int, int, int]] = []
    held_out = config.screen.holdout_experiments
    if folder is None:
        simulate = config.simulate
        treatments, controls = PLATES * simulate.treatments_per_group, PLATES * (simulate.positive_controls + 1)
        source, classes = (
            "the sizes under simulate, no well missing (no --screen)",
            treatments + simulate.positive_controls + 1,
        )
        for cell_type in sorted({*simulate.labelled, *simulate.unlabelled}):
            labelled = simulate.labelled.get(cell_type, 0)
            for number in range(1, labelled + simulate.unlabelled.get(cell_type, 0) + 1):
                name = f"{cell_type}-{number:02d}"
                found.append((name, cell_type, number <= labelled, name in held_out, PLATES, treatments, controls))
        unknown = {*held_out} - {name for name, *_ in found}
        if unknown:
            raise InputError(f"screen.holdout_experiments: the simulated screen has no {', '.join(sorted(unknown))}")
    else:
        screen = read_screen(folder, config.screen)
        source, classes = f"the tables in {folder}", len(screen.vocabulary.classes)
        plates = Counter(plate.experiment for plate in screen.plates)
        kinds = Counter((p.experiment, well.well_type == "treatment") for p in screen.plates for well in p.wells)
        for plate in {plate.experiment: plate for plate in screen.plates}.values():
            name = plate.experiment
            counts = plates[name], kinds[name, True], kinds[name, False]
            found.append((name, plate.cell_type, plate.labelled, plate.holdout, *counts))
    missing = [each for each in config.screen.cell_types if each not in {cell_type for _, cell_type, *_ in found}]
    if missing:
        raise InputError(f"screen.cell_types: the screen has no {', '.join(missing)}; remove it, or add experiments")
    trained: dict[str, list[str]] = {}
    for name, cell_type, labelled, holdout, *_ in found:
        if labelled and not holdout:
            trained.setdefault(cell_type, []).append(name)
    by_well = config.folds.count if config.folds.split == "well" else None
    fold_of = {} if by_well else assign_folds(trained, config.folds.count, config.folds.known, config.folds.seed)
    experiments = tuple(
        ExperimentWells(name, cell_type, labelled and not holdout, holdout, fold_of.get(name), *counts)
        for name, cell_type, labelled, holdout, *counts in found
    )
    return ScreenWells(source, experiments, config.screen.sites, classes, by_well, config.screen.controls == "all")


@dataclass(frozen=True)
class NetworkWork:
    """Site passes of one task through one network: with a backward pass, and without gradients."""

    training: int = 0
    forward: int = 0

    @property
    def forward_equivalents(self) -> int:
        """Work in forward passes: a backward pass costs two."""
        return 3 * self.training + self.forward


def task_work(config: RunConfig, wells: ScreenWells, task: DagTask) -> dict[str, NetworkWork]:
    """Site passes of a task by backbone; none of a step without networks.

    Raises:
        InputError: a fold without wells to train on.
    """
    if task.fold is None:
        return {}
    of_fold = wells.fold(task.fold, task.cell_type)
    validated = (
        of_fold.validation * wells.sites * (1 if config.batch_norm.domain == "none" else 2)
    )  # AdaBN reads them first
    if task.step == "pretrain":
        epochs = config.pretrain.epochs
        validations = math.ceil(epochs / config.pretrain.validate_every)
        return {str(task.backbone): NetworkWork(epochs * of_fold.training, validations * validated)}
    cell_type, training, forward = str(task.cell_type), 0, 0
    if task.step in ("finetune", "pseudo_label"):
        teacher = config.mean_teacher
        schedule = CycleSchedule.of(teacher, cell_type)
        first, stop = (0, schedule.cut) if task.step == "finetune" else (schedule.cut, schedule.total)
        others = of_fold.validation + of_fold.unlabelled
        mixed = round(of_fold.training / teacher.labelled_batch) * teacher.unlabelled_batch if others else 0
        batch, epochs = of_fold.training + mixed, stop - first
        validations = math.ceil(epochs / teacher.validate_every) if of_fold.validation else 0
        training = epochs * (of_fold.training + batch)  # the student sees labelled wells in two views
        forward = epochs * batch + 2 * validations * validated  # the teacher; validation of both
        if task.step == "pseudo_label" and others:
            forward += round(expected_refreshes(config, schedule, validations) * teacher.pseudo_label_passes * others)
    if task.step in ("pseudo_label", "infer"):
        forward += _prediction(config, wells, task.fold, cell_type)
    return {backbone.name: NetworkWork(training, forward) for backbone in config.backbones}


def expected_refreshes(config: RunConfig, schedule: CycleSchedule, validations: int) -> float:
    """How often pseudo_label computes its labels: at its start, and at every new best validation score or fixed epochs.

    n validations bring a new best at least H(n + 1) - 1 times, as among equals in random order, at most n times; the geometric
    mean is taken.
    """
    teacher = config.mean_teacher
    epochs = schedule.total - schedule.cut
    if teacher.selection == "last" or not validations:
        return 1 + (epochs - 1) // teacher.refresh_epochs
    chances = validations - 1
    return 1 + math.sqrt(chances * sum(1 / k for k in range(2, chances + 2)))


def _prediction(config: RunConfig, wells: ScreenWells, fold: int, cell_type: str) -> int:
    """Passes for logits of the predicted wells, and embeddings of all wells of the cell type."""
    embedded = config.embeddings.views if config.embeddings.enabled else 0
    predicted = wells.predicted(fold, cell_type)
    others = wells.count(cell_type) - predicted if embedded else 0
    adapted = 0 if config.batch_norm.domain == "none" else predicted + others
    return (predicted * max(config.predict.views, embedded) + others * embedded + adapted) * wells.sites


def site_bytes(config: RunConfig) -> int:
    """Bytes of one decoded site."""
    return len(CHANNELS) * config.screen.image_size**2


def packed_bytes(config: RunConfig, wells: ScreenWells, rates: Rates) -> float:
    """Bytes of the packed screen."""
    return wells.count() * wells.sites * site_bytes(config) * rates.cpu.packed_share[config.pack.codec]


def stored_bytes(
    config: RunConfig, wells: ScreenWells, rates: Rates, sizes: Mapping[str, NetworkSize], task: DagTask
) -> float:
    """Bytes that a task leaves in the store: packed sites; weights, logits and embeddings as finished output and artifact."""
    if task.step == "normalize":
        return packed_bytes(config, wells, rates)
    if task.fold is None:
        return 0.0
    names = [task.backbone] if task.backbone else list(sizes)
    weights = sum(sizes[name].weight_bytes(wells.classes) for name in names)
    written = {"pretrain": weights, "finetune": 2 * weights, "pseudo_label": 2 * weights}.get(task.step, 0)
    if task.step in ("pseudo_label", "infer"):
        predicted = wells.predicted(task.fold, str(task.cell_type))
        embedded = sum(size.embedding for size in sizes.values()) if config.embeddings.enabled else 0
        written += 4 * (predicted * wells.classes + wells.count(task.cell_type) * embedded)
    return 2.0 * written
