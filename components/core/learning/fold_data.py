"""The data of a fold's training: images, the wells to train on, and those that validate, with the score of their logits.

W wells, K class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.evaluation import metrics
from components.core.learning.device import pick_device
from components.core.learning.images import Images, open_images
from components.core.learning.inference import well_logits
from components.core.learning.network import Classifier
from components.core.learning.step_settings import LearningSettings
from components.core.learning.team import ALONE, Team
from components.core.prior.plate_groups import PlateGroups, labelled_treatments, learn_groups
from components.core.progress import warn
from components.core.screen.packed import TREATMENT, SiteTable
from components.core.storage.manifest import Manifest

Selection = Literal["balanced", "group", "raw", "last"]
"""Which accuracy selects a checkpoint; `last`, which selects nothing, reports `group`."""

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore


@dataclass(frozen=True)
class FoldWells:
    """Wells of one fold, as rows of the well table."""

    training: NDArray[np.intp]  # wells whose labels may be used: treatments of the other folds, and controls
    validation: NDArray[np.intp]  # treatment wells of the fold itself; their labels select checkpoints and nothing else
    unlabelled: NDArray[np.intp]  # treatment wells without a label, most of them of unlabelled experiments

    @property
    def hidden(self) -> NDArray[np.intp]:
        """Validation and unlabelled wells: their images are trained on, their labels are hidden."""
        return np.concatenate([self.validation, self.unlabelled])


def fold_wells(
    table: SiteTable, fold: int, controls: Literal["all", "training"], cell_type: str | None = None
) -> FoldWells:
    """Splits a screen's wells for one fold.

    Args:
        table: the screen, without held-out experiments.
        fold: the fold whose experiments, or wells, validate.
        controls: which labelled controls join training: of all experiments, or of those with treatments to train on.
        cell_type: only its wells; None for all.

    Raises:
        InputError: there is nothing to train on.
    """
    treatment_W = table.role_W == TREATMENT
    chosen_W = np.ones(table.wells, dtype=bool)
    if cell_type is not None:
        if cell_type not in table.cell_types:
            raise InputError(f"cell type {cell_type!r} has no plates in the screen; it holds {list(table.cell_types)}")
        chosen_W = table.cell_type_W == table.cell_types.index(cell_type)
    labelled_W = treatment_W & table.labelled_W & (table.class_W >= 0)
    supervised_W = labelled_W & (table.fold_W >= 0) & ~table.held_out(fold)
    control_W = ~treatment_W & (table.class_W >= 0)
    if controls == "training":
        control_W &= np.isin(table.experiment_W, table.experiment_W[supervised_W])
    training_W = chosen_W & (supervised_W | control_W)
    if not (training_W & treatment_W).any():
        raise InputError(
            f"fold {fold}: no labelled treatment wells to train on"
            + (f" for cell type {cell_type}" if cell_type else "")
            + "; use fewer folds or more labelled experiments"
        )
    return FoldWells(
        training=np.flatnonzero(training_W),
        validation=np.flatnonzero(chosen_W & treatment_W & table.labelled_W & table.held_out(fold)),
        unlabelled=np.flatnonzero(chosen_W & treatment_W & ~table.labelled_W),
    )


def groups_of_fold(manifest: Manifest, fold: int, prior: PriorConfig) -> PlateGroups | None:
    """Plate groups learned from the training experiments of a fold; None without prior or without a plate design."""
    if not prior.enabled or manifest.has_no_design:
        return None
    training = {experiment for experiment in manifest.folds if fold not in manifest.validating(experiment)}
    try:
        return learn_groups(labelled_treatments(manifest.plates, training), manifest.vocabulary.treatments)
    except InputError as error:
        # A mistake in the plate design must not end a run after hours of training.
        warn(f"fold {fold}: training without the plate design ({error})")
        return None


@dataclass(frozen=True)
class Validation:
    """The wells that select the checkpoint; none if the fold holds no experiment back."""

    wells: NDArray[np.intp]  # rows of the well table
    # from their logits, shape (W, K), to the accuracy that selects a checkpoint
    score: Callable[[NDArray[np.float32]], float]
    batch_size: int  # sites per forward pass
    classes: int  # K

    def logits(self, network: Classifier, images: Images) -> NDArray[np.float32]:
        """Logits of the wells from one view of all their sites, shape (W, K)."""
        return well_logits(network, images, self.wells, 1, self.batch_size, self.classes)


def validation_score(
    table: SiteTable,
    screen: Manifest,
    wells: NDArray[np.intp],
    groups: PlateGroups | None,
    selection: Selection,
) -> Callable[[NDArray[np.float32]], float]:
    """The accuracy of the validation wells, as a function of their logits over all classes; raw without `groups`."""
    treatments = len(screen.vocabulary.treatments)
    truth_W = table.class_W[wells].astype(np.intp)
    experiments_W = [table.experiments[e] for e in table.experiment_W[wells]]
    plates_W = table.plate_name_P[table.plate_W[wells]].tolist()
    kind: metrics.Selection = "group" if selection == "last" else selection
    return lambda logits_WK: metrics.selection_accuracy(
        kind, logits_WK[:, :treatments], truth_W, experiments_W, plates_W, groups
    )


@dataclass(frozen=True)
class FoldData:
    """What a training of a fold reads."""

    images: Images
    wells: FoldWells  # of one cell type or of all
    groups: PlateGroups | None  # learned from the fold's training experiments; None without a plate design
    validation: Validation  # the wells that select the checkpoint


def open_fold(
    settings: LearningSettings,
    screen: Manifest,
    store: ObjectStore,
    fold: int,
    selection: Selection,
    cell_type: str | None = None,
    team: Team = ALONE,
) -> FoldData:
    """The data of a fold and cell type (None for all), for the training device.

    Raises:
        InputError: there is nothing to train on, or folds of single wells are combined with the plate design.
    """
    images = open_images(settings, screen, store, pick_device(), team)
    wells = fold_wells(images.table, fold, settings.screen.controls, cell_type)
    groups = groups_of_fold(screen, fold, settings.prior)
    score = validation_score(images.table, screen, wells.validation, groups, selection)
    classes = len(screen.vocabulary.classes)
    return FoldData(images, wells, groups, Validation(wells.validation, score, settings.predict.batch_size, classes))
