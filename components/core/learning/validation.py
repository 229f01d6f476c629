"""The validation accuracy that is reported and selects checkpoints, from logits. NumPy; the arithmetic is evaluation.metrics."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.evaluation.metrics import selection_accuracy
from components.core.learning.selection import Score
from components.core.prior.plate_groups import PlateGroups, labelled_treatments, learn_groups
from components.core.progress import warn
from components.core.screen.site_table import SiteTable
from components.core.storage.manifest import Manifest


def groups_of_fold(manifest: Manifest, fold: int, prior: PriorConfig) -> PlateGroups | None:
    """Plate groups learned from the training experiments of a fold; None without prior or without a plate design.

    Raises:
        InputError: folds of single wells, whose plates carry training labels.
    """
    if not prior.enabled:
        return None
    if manifest.split == "well":
        raise InputError(
            "the plate design would tell held-out wells by their neighbours' labels; set prior.enabled to false"
        )
    training = {experiment for experiment, own in manifest.folds.items() if own != fold}
    try:
        return learn_groups(labelled_treatments(manifest.plates, training), manifest.vocabulary.treatments)
    except InputError as error:
        # A design with a mistake in it must not end a run after hours: the fold goes on without, and says so.
        warn(f"fold {fold}: going on without the plate design ({error})")
        return None


def score_of(
    table: SiteTable,
    manifest: Manifest,
    wells: NDArray[np.intp],
    groups: PlateGroups | None,
    prior: PriorConfig,
    kind: Literal["balanced", "group", "raw", "last"],
) -> Score:
    """Accuracy of the validation wells' logits over all classes, shape (W, K); with `last`, which selects nothing, as `group`."""
    treatments = len(manifest.vocabulary.treatments)
    truth_W = table.class_W[wells].astype(np.intp)
    experiments_W = [table.experiments[e] for e in table.experiment_W[wells]]
    plates_W = [int(p) for p in table.plate_number_P[table.plate_W[wells]]]

    def score(logits_WK: NDArray[np.float32]) -> float:
        return selection_accuracy(
            "group" if kind == "last" else kind,
            logits_WK[:, :treatments],
            truth_W,
            experiments_W,
            plates_W,
            groups,
            prior,
        )

    return score
