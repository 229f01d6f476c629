"""Well top-1 on arrays of class indices, and the validation accuracies that select checkpoints. Pure NumPy.

W wells, K treatment classes. Free of pandas, for training; the numbers of a report are in scores.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.core.prior.balancing import weights_over_wells, without_bias
from components.core.prior.plate_groups import PlateGroups

Selection = Literal["balanced", "group", "raw"]


def top1(predicted_W: NDArray[np.intp], truth_W: NDArray[np.intp]) -> float:
    """The fraction of wells that are predicted correctly.

    Raises:
        ValueError: no wells.
    """
    if not len(truth_W):
        raise ValueError("top-1 needs at least one well")
    return float((predicted_W == truth_W).mean())


def top1_by_cell_type(
    predicted_W: NDArray[np.intp], truth_W: NDArray[np.intp], cell_types_W: Sequence[str]
) -> dict[str, float]:
    """Top-1 over all wells (`overall`), then by cell type in sorted order; at least one well."""
    cell_type_W = np.asarray(cell_types_W)
    table = {"overall": top1(predicted_W, truth_W)}
    for cell_type in sorted(set(cell_types_W)):
        of_type_W = cell_type_W == cell_type
        table[cell_type] = top1(predicted_W[of_type_W], truth_W[of_type_W])
    return table


def selection_accuracy(
    kind: Selection,
    logits_WK: NDArray[np.floating],
    truth_W: NDArray[np.intp],
    experiments_W: Sequence[str],
    plates_W: Sequence[str],
    groups: PlateGroups | None,
) -> float:
    """Validation top-1 that selects a checkpoint.

    The plate's group is the true one: validation experiments are labelled, and an inferred arrangement that flips early in
    training would make epochs incomparable.

    Args:
        kind: `raw`, arg-max over all treatments; `group`, over the group of the well's plate; `balanced`, the same after a
            softmax over the wells of the plate in place of the group's treatments.
        logits_WK: logits of the treatment classes, (W, K), at least one well.
        truth_W: true treatment class of each well.
        experiments_W: the experiment of each well.
        plates_W: the plate of each well.
        groups: the plate groups; None if the screen has no plate design or the prior is off. Then every kind is raw, because
            a balance would expect every perturbation equally often on a plate.

    Source: `balanced` is the score that selects checkpoints in the CellSignal 2nd-place method, by its description.
    """
    if kind == "raw" or groups is None:
        return top1(logits_WK.argmax(axis=1), truth_W)
    group_K = groups.group_of_class()
    if kind == "group":
        inside_WK = group_K[None, :] == group_K[truth_W][:, None]
        return top1(np.where(inside_WK, logits_WK, -np.inf).argmax(axis=1), truth_W)
    experiment_W, plate_W = np.asarray(experiments_W), np.asarray(plates_W)
    predicted_W = np.empty(len(truth_W), dtype=np.intp)
    for experiment, plate in sorted(set(zip(experiments_W, plates_W, strict=True))):
        wells_w = np.flatnonzero((experiment_W == experiment) & (plate_W == plate))
        # A plate holds one group; the majority decides, so that one mislabelled well does not move the plate.
        group = np.bincount(group_K[truth_W[wells_w]]).argmax()
        classes_k = np.flatnonzero(group_K == group)
        logits_wk = without_bias(logits_WK[np.ix_(wells_w, classes_k)])
        predicted_W[wells_w] = classes_k[(logits_wk + weights_over_wells(logits_wk)).argmax(axis=1)]
    return top1(predicted_W, truth_W)
