"""The work of a run: wells of its screen by experiment, site passes and stored bytes of each task. Pure arithmetic.

A site pass is one image through one network once. Counts follow core.learning: an epoch of pretraining sees each training well
once, a random site of it. Incomplete and filled-up batches are not counted, an error of a few percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.network_size import NetworkSize
from components.core.learning.schedules import CycleSchedule
from components.core.screen.images import image_form
from components.core.screen.layouts import read_screen
from components.core.screen.plane_header import bits, pixels
from components.core.screen.simulation.plate_design import experiment_size, treatment_count
from components.core.storage.manifest import PixelType
from components.core.storage.opening import open_screen
from pipelines.checks import check_folds, simulated_experiments
from pipelines.dag import DagTask
from pipelines.plan.memory import site_bytes
from pipelines.plan.rates import Rates

EXPERIMENT = ["experiment", "cell_type", "labelled", "holdout"]


class FoldCounts(NamedTuple):
    """Numbers of wells of one fold: those that train, validate, and are unlabelled treatments."""

    training: int
    validation: int
    unlabelled: int


@dataclass(frozen=True)
class ScreenWells:
    """The wells of a run's screen."""

    config: RunConfig  # the run's, with the screen's own channels and size of images
    source: str  # where the numbers come from, as text
    assumed: str  # what the screen or configuration does not say, as text; may be empty
    sites_per_well: float  # their mean
    dtype: PixelType  # type of the packed pixels
    # a row an experiment: `experiment`, `cell_type`, `labelled` (and not held out), `holdout`, `folds` (those that
    # validate on it) and the numbers of its `plates`, `treatments` and `controls`
    experiments: pd.DataFrame
    classes: int  # K, controls included

    def count(self, cell_type: str | None = None) -> int:
        """Number of wells, of one cell type or all."""
        return int(self._of_type(cell_type)[["treatments", "controls"]].to_numpy().sum())

    @property
    def sites(self) -> int:
        """Number of sites."""
        return round(self.count() * self.sites_per_well)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the decoded sites."""
        return self.sites * site_bytes(self.config, self.dtype)

    def predicted(self, fold: int, cell_type: str) -> int:
        """Wells of a cell type whose labels the fold's networks never saw: validation, unlabelled, and held out."""
        counts, found = self.fold(fold, cell_type), self._of_type(cell_type)
        return counts.validation + counts.unlabelled + int(found.treatments[found.holdout].sum())

    def fold(self, fold: int, cell_type: str | None = None) -> FoldCounts:
        """Splits the wells for one fold, as core.learning.fold_data does."""
        read = self._of_type(cell_type).query("not holdout")
        labelled = read[read.labelled]
        trains, total = labelled[[fold not in own for own in labelled.folds]], int(labelled.treatments.sum())
        by_well = not any(labelled.folds)
        supervised = total - round(total / self.config.folds.count) if by_well else int(trains.treatments.sum())
        controls = (read if self.config.screen.controls == "all" else trains).controls.sum()
        unlabelled = read.treatments[~read.labelled].sum()
        return FoldCounts(supervised + int(controls), total - supervised, int(unlabelled))

    def _of_type(self, cell_type: str | None) -> pd.DataFrame:
        return self.experiments if cell_type is None else self.experiments[self.experiments.cell_type == cell_type]


def screen_wells(config: RunConfig, folder: Path | None) -> ScreenWells:
    """The wells that a run works on, by the screen in a folder; without one, by the sizes under `simulate`.

    Of a screen without images, or with wrong ones, the tables count, and the rest is assumed.

    Raises:
        InputError: the tables are wrong, or do not fit the folds or the crops.
    """
    assumed, sites, dtype = "", float(config.screen.usual_sites), _pixel_type(config, config.simulate.bits)
    if folder is None:
        simulate, source = config.simulate, "the sizes under simulate, no well missing (no --screen)"
        if config.screen.sites is None:
            assumed = f"{sites:g} sites a well, because screen.sites is null"
        folds = check_folds(config, simulated_experiments(config))
        classes = treatment_count(simulate) + simulate.positive_controls + 1
        rows = _simulated_rows(config)
    else:
        opened = open_screen(str(folder))
        try:
            screen, source = read_screen(opened, config.screen), f"the screen in {folder}"
            given = config.screen.image_shape if config.screen.image_size is not None else None
            form = image_form(opened, screen, given)
        except InputError as error:
            screen, source = read_screen(opened, config.screen, images=False), f"the tables in {folder}"
            shape, channels = pixels(config.screen.image_shape), len(config.screen.channel_names)
            assumed = f"{sites:g} sites a well of {channels} channels, {shape}, 8 bit; of the images: {error}"
        else:
            wells = [well for plate in screen.plates for well in plate.wells]
            sites, dtype = sum(len(well.sites) for well in wells) / len(wells), _pixel_type(config, bits(form.dtype))
            own = config.screen.model_copy(update={"channels": form.channels, "image_size": form.shape})
            config = config.model_copy(update={"screen": own})
        try:
            config.screen.input_side_of(config.screen.image_shape)
        except ValueError as error:
            raise InputError(f"screen.{error}; lower screen.crop or screen.bin") from None
        folds, classes = check_folds(config, screen.training_experiments()), len(screen.vocabulary.classes)
        rows = []
        for plate in screen.plates:
            treatments = sum(well.role == "treatment" for well in plate.wells)
            counts = (1, treatments, len(plate.wells) - treatments)
            rows.append((plate.experiment, plate.cell_type, plate.labelled, plate.holdout, *counts))
    plates = pd.DataFrame(rows, columns=[*EXPERIMENT, "plates", "treatments", "controls"])
    found = plates.groupby(EXPERIMENT, sort=False).sum().reset_index()
    found["labelled"] &= ~found.holdout
    found["folds"] = [folds.get(name, ()) for name in found.experiment]
    return ScreenWells(config, source, assumed, sites, dtype, found, classes)


def _pixel_type(config: RunConfig, bits: int) -> PixelType:
    """The type of the packed pixels of images of 8 or 16 bits."""
    return "uint16" if bits == 16 and config.pack.bits != 8 else "uint8"


def _simulated_rows(config: RunConfig) -> list[tuple[object, ...]]:
    """The experiments of a simulated screen without missing wells, as rows of ScreenWells."""
    simulate, size = config.simulate, experiment_size(config.simulate)
    rows: list[tuple[object, ...]] = []
    for cell_type in sorted({*simulate.labelled, *simulate.unlabelled}):
        labelled = simulate.labelled.get(cell_type, 0)
        for number in range(labelled + simulate.unlabelled.get(cell_type, 0)):
            name = f"{cell_type}-{number + 1:02d}"
            counts = (size.plates, size.plates * size.treatments, size.plates * size.controls)
            rows.append((name, cell_type, number < labelled, name in config.screen.holdout_experiments, *counts))
    return rows


@dataclass(frozen=True)
class NetworkWork:
    """Site passes of one task through one network: with a backward pass, and without gradients."""

    training: int = 0
    forward: int = 0


def task_work(wells: ScreenWells, task: DagTask) -> dict[str, NetworkWork]:
    """Site passes of a task by backbone; empty for a step without networks."""
    if task.fold is None:
        return {}
    config, counts = wells.config, wells.fold(task.fold, task.cell_type)
    passes = 1 if config.batch_norm.domain == "none" else 2  # AdaBN reads the wells once more
    validated = round(counts.validation * wells.sites_per_well * passes)
    if task.step == "pretrain":
        epochs = config.pretrain.epochs
        validations = math.ceil(epochs / config.pretrain.validate_every)
        return {str(task.backbone): NetworkWork(epochs * counts.training, validations * validated)}
    cell_type, training, forward = str(task.cell_type), 0, 0
    if task.step in ("finetune", "pseudo_label"):
        teacher = config.mean_teacher
        schedule = CycleSchedule.of(teacher, cell_type)
        first, stop = (0, schedule.cut) if task.step == "finetune" else (schedule.cut, schedule.total)
        others = counts.validation + counts.unlabelled
        mixed = round(counts.training / teacher.labelled_batch) * teacher.unlabelled_batch if others else 0
        if teacher.mix == "natural":
            mixed = others
        batch, epochs = counts.training + mixed, stop - first
        validations = math.ceil(epochs / teacher.validate_every) if counts.validation else 0
        training = epochs * (counts.training + batch)  # the student sees labelled wells in two views
        forward = epochs * batch + 2 * validations * validated  # the teacher; validation of both
        if task.step == "pseudo_label" and others:
            forward += round(_expected_refreshes(config, schedule, validations) * teacher.pseudo_label_passes * others)
    if task.step in ("pseudo_label", "infer"):
        # Logits of the predicted wells, and embeddings of all wells of the cell type.
        views = config.embeddings.views if config.embeddings.enabled else 0
        predicted = wells.predicted(task.fold, cell_type)
        others = wells.count(cell_type) - predicted if views else 0
        adapted = (passes - 1) * (predicted + others)
        seen = predicted * max(config.predict.views, views) + others * views + adapted
        forward += round(seen * wells.sites_per_well)
    return {backbone.name: NetworkWork(training, forward) for backbone in config.backbones}


def _expected_refreshes(config: RunConfig, schedule: CycleSchedule, validations: int) -> float:
    """How often pseudo_label computes its labels: at its start, and at every new best validation score or fixed epochs.

    n validations bring a new best at least H(n + 1) - 1 times, as among equals in random order, at most n times; this takes the
    geometric mean of the two.
    """
    teacher = config.mean_teacher
    if teacher.selection == "last" or not validations:
        return 1 + (schedule.total - schedule.cut - 1) // teacher.refresh_epochs
    chances = validations - 1
    return 1 + math.sqrt(chances * sum(1 / k for k in range(2, chances + 2)))


def packed_bytes(wells: ScreenWells, rates: Rates) -> float:
    """Bytes of the packed screen."""
    shares = rates.cpu.packed_share if wells.dtype == "uint8" else rates.cpu.packed_share_16_bit
    return wells.pixel_bytes * shares[wells.config.pack.codec]


def stored_bytes(wells: ScreenWells, rates: Rates, sizes: Mapping[str, NetworkSize], task: DagTask) -> float:
    """Bytes that a task leaves in the store: packed sites; finished outputs, and copies of those that are artifacts of KFP."""
    if task.step == "normalize":
        return packed_bytes(wells, rates)
    if task.fold is None:
        return 0.0
    networks = [sizes[task.backbone]] if task.backbone else list(sizes.values())
    copies = {"pretrain": 1, "finetune": 2, "pseudo_label": 2}.get(task.step, 0)  # student and teacher
    weights = copies * sum(size.weight_bytes(wells.classes) for size in networks)
    written = 0.0
    if task.step in ("pseudo_label", "infer"):
        written += 4 * wells.predicted(task.fold, str(task.cell_type)) * wells.classes
        if wells.config.embeddings.enabled:
            written += 4 * wells.count(task.cell_type) * sum(size.embedding for size in networks)
    return 2.0 * written + weights * (1 if task.step == "pseudo_label" else 2)
