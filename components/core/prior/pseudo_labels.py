"""Pseudo-labels of unlabelled wells: by a fold's own teachers under the plate design, or from an earlier run.

An earlier run's predictions are assigned means over all folds, so they are better than labels by one fold's teachers. They
replace the labels of unlabelled wells only, because the other folds trained on a fold's validation wells. Out-of-fold scores
of such a further round are not independent of the labels, which its networks learned; unlabelled and holdout scores are.

W wells, K treatment perturbations; lower case w for the wells that an earlier run labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.prior.assignment import Competition, competitions
from components.core.prior.balancing import assign_plate, balanced, expected, without_bias
from components.core.prior.plate_groups import Arrangement, PlateGroups, infer_arrangements


@dataclass(frozen=True)
class PseudoLabels:
    """One refresh."""

    class_W: NDArray[np.intp]
    """treatment class of each well, -1 for wells that are not confident enough to be labelled"""
    prob_WK: NDArray[np.float32]
    """balanced probabilities of all treatments at sharpness 1, rows sum to 1; zero rows for wells that get no label"""
    confidence_W: NDArray[np.float64]
    """the probability of its class, in (0, 1]; not calibrated"""
    logits_WK: NDArray[np.float32]
    """blended logits, the `previous_WK` of the next refresh"""
    arrangements: Mapping[str, Arrangement]
    """by experiment; empty if the prior was not used"""


def select(
    logits_WK: NDArray[np.floating],
    experiments_W: Sequence[str],
    plates_W: Sequence[str],
    groups: PlateGroups | None,
    prior: PriorConfig,
    previous_WK: NDArray[np.floating] | None = None,
    blend: float = 0.9,
    fraction: float = 1.0,
    one_to_one: bool = False,
) -> PseudoLabels:
    """Labels wells by their blended logits, each plate restricted to its group and balanced.

    An experiment's arrangement is inferred from the blended logits; labels tell that of training experiments alone, of which
    some wells have none. If none is clear, its wells are balanced over all treatments together, also under `refuse`, which
    concerns final predictions; if there are too few wells to show one, they are not balanced. Several wells may get the same
    label, because this is an arg-max, unless `one_to_one` asks for an assignment.

    Args:
        logits_WK: new logits of the treatment classes, averaged over teachers and passes, (W, K).
        experiments_W: the experiment of each well.
        plates_W: the plate of each well.
        groups: learned from the fold's training experiments; None if the screen has no plate design.
        prior: with `enabled` false, or without groups, labels are the arg-max of a plain softmax over treatments.
        previous_WK: the last refresh's `logits_WK`; None at the first.
        blend: weight of the new logits.
        fraction: fraction of the wells that get a label, rounded up: the most confident of each competition, because a
            screen-wide fraction would leave the groups of weak plates without labels; without the prior the most confident of all.
        one_to_one: whether wells that compete get different labels, those of the final predictions.

    Raises:
        ValueError: shapes that do not fit, or logits that are not finite.

    Source: online pseudo-labels of the CellSignal 2nd-place method, with Sinkhorn in place of its greedy balance.
    """
    wells = len(logits_WK)
    if len(experiments_W) != wells or len(plates_W) != wells:
        raise ValueError(f"{wells} rows of logits but {len(experiments_W)} experiments and {len(plates_W)} plates")
    if not np.isfinite(logits_WK).all():
        raise ValueError("logits must be finite")
    if previous_WK is not None:
        if previous_WK.shape != logits_WK.shape:
            raise ValueError(f"previous logits have shape {previous_WK.shape}, new ones {logits_WK.shape}")
        logits_WK = blend * logits_WK.astype(np.float64) + (1 - blend) * previous_WK.astype(np.float64)
    blended_WK = np.asarray(logits_WK, dtype=np.float32)
    arrangements: dict[str, Arrangement] = {}
    parts: list[Competition] = []
    if prior.enabled and groups is not None:
        arrangements = infer_arrangements(
            blended_WK, experiments_W, plates_W, groups, prior.permutations, groups.arrangements
        )
        parts = competitions(experiments_W, plates_W, arrangements, groups, prior)
    # Wells in no competition, without the prior or because perturbations repeat, keep their arg-max.
    prob_WK = scipy.special.softmax(blended_WK.astype(np.float64), axis=1)
    class_W, confidence_W = prob_WK.argmax(axis=1), prob_WK.max(axis=1)
    left: list[NDArray[np.intp]] = []
    free_W = np.ones(wells, dtype=bool)
    for part in parts:
        log_prob_wk = part.log_prob(blended_WK)
        balanced_wk = balanced(log_prob_wk, prior)
        best_w = assign_plate(without_bias(log_prob_wk)) if one_to_one else balanced_wk.argmax(axis=1)
        # A sharp balance labels better, but its probabilities are overconfident.
        prob_wk = np.exp(expected(log_prob_wk, balanced_wk, prior))
        class_W[part.wells_w] = part.classes_k[best_w]
        confidence_W[part.wells_w] = prob_wk[np.arange(len(best_w)), best_w]
        prob_WK[part.wells_w] = 0.0
        prob_WK[np.ix_(part.wells_w, part.classes_k)] = prob_wk
        left.append(part.wells_w[least_confident(confidence_W[part.wells_w], fraction)])
        free_W[part.wells_w] = False
    free_w = np.flatnonzero(free_W)
    left_w = np.concatenate([*left, free_w[least_confident(confidence_W[free_w], fraction)]])
    class_W[left_w] = -1
    prob_WK[left_w] = 0.0
    return PseudoLabels(class_W, prob_WK.astype(np.float32), confidence_W, blended_WK, arrangements)


def least_confident(confidence_W: NDArray[np.float64], fraction: float) -> NDArray[np.intp]:
    """The wells beyond the most confident fraction; of equally confident wells the first are kept."""
    kept = math.ceil(fraction * len(confidence_W) - 1e-9)
    return np.argsort(-confidence_W, kind="stable")[kept:]


@dataclass(frozen=True)
class FusedLabels:
    """The predictions of some wells by an earlier run."""

    row_w: NDArray[np.intp]
    """the wells, as indices into the wells that get pseudo-labels"""
    class_w: NDArray[np.intp]
    """their treatment classes"""
    confidence_w: NDArray[np.float64]
    """their calibrated probabilities"""
    plates_w: tuple[tuple[str, str], ...]
    """experiment and plate of each"""

    def over(self, found: PseudoLabels, fraction: float) -> PseudoLabels:
        """Pseudo-labels of the fold's teachers with these wells replaced: soft labels one-hot, a `fraction` of each plate."""
        class_W, confidence_W, prob_WK = found.class_W.copy(), found.confidence_W.copy(), found.prob_WK.copy()
        class_W[self.row_w], confidence_W[self.row_w] = self.class_w, self.confidence_w
        prob_WK[self.row_w] = 0.0
        prob_WK[self.row_w, self.class_w] = 1.0
        for plate in dict.fromkeys(self.plates_w):
            of_plate = np.array([k for k, own in enumerate(self.plates_w) if own == plate], dtype=np.intp)
            left = self.row_w[of_plate[least_confident(self.confidence_w[of_plate], fraction)]]
            class_W[left] = -1
            prob_WK[left] = 0.0
        return replace(found, class_W=class_W, confidence_W=confidence_W, prob_WK=prob_WK)


def read_fused_labels(
    path: Path,
    ids_W: Sequence[str],
    unlabelled_W: NDArray[np.bool_],
    experiments_W: Sequence[str],
    plates_W: Sequence[str],
    treatments: Sequence[str],
    column: str,
    source: str | None = None,
) -> FusedLabels:
    """Reads the predictions.csv of an earlier run for the unlabelled wells of a fold.

    Args:
        path: the table; rows of other wells are ignored.
        ids_W: id_codes of the wells that get pseudo-labels.
        unlabelled_W: which of them are unlabelled; the others are validation wells, which never get these labels.
        experiments_W: the experiment of each well.
        plates_W: the plate of each well.
        treatments: the treatment labels in class order.
        column: the screen's column of labels.
        source: the user's name of the file, for errors; None for its path.

    Raises:
        InputError: the file cannot be read or lacks a column or a well, or a perturbation or confidence is not valid.
    """
    # pandas is loaded only for a further round: training imports this module.
    from components.core.label_tables import read_label_table
    from components.core.tables import TableFaults

    source = source or str(path)
    row_of = {ids_W[row]: row for row in np.flatnonzero(unlabelled_W).tolist()}
    table, column = read_label_table(path, column, ("confidence",), source)
    table = table[table["id_code"].isin(list(row_of))]
    faults = TableFaults(source, table)
    faults.require_one_of([column], treatments, "it is not a treatment of this screen")
    confidence = faults.numbers("confidence")
    faults.require_unique("id_code")
    faults.check()
    present = set(table["id_code"])
    absent = [id_code for id_code in row_of if id_code not in present]
    if absent:
        raise InputError(
            f"{source}: has no row for {len(absent)} unlabelled wells, first {absent[0]}; give the predictions.csv of a "
            "run on this screen"
        )
    index = {label: k for k, label in enumerate(treatments)}
    rows = [row_of[id_code] for id_code in table["id_code"]]
    order_w = np.argsort(rows)
    return FusedLabels(
        np.array(rows, dtype=np.intp)[order_w],
        np.array([index[label] for label in table[column]], dtype=np.intp)[order_w],
        np.array(confidence, dtype=np.float64)[order_w],
        tuple((experiments_W[row], plates_W[row]) for row in sorted(rows)),
    )
