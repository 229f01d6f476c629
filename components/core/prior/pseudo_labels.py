"""Pseudo-labels of unlabelled wells under the plate design, for online refreshes. Pure NumPy; training calls it.

W wells, K treatment siRNAs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.prior.arrangement import Arrangement, infer_arrangements
from components.core.prior.balancing import balanced, expected
from components.core.prior.competition import competitions
from components.core.prior.plate_groups import PlateGroups


@dataclass(frozen=True)
class PseudoLabels:
    """One refresh."""

    class_W: NDArray[np.intp]
    """treatment class of each well, -1 for wells that are not confident enough to be labelled"""
    prob_WK: NDArray[np.float32]
    """balanced probabilities of all treatments at sharpness 1, rows sum to 1; zero rows for wells that get no label"""
    confidence_W: NDArray[np.float64]
    """its probability among those, in (0, 1]; not calibrated"""
    logits_WK: NDArray[np.float32]
    """blended logits, to hand in as `previous_WK` at the next refresh"""
    arrangements: Mapping[str, Arrangement]
    """by experiment; empty where the prior was not used"""


def select(
    logits_WK: NDArray[np.floating],
    experiments_W: Sequence[str],
    plates_W: Sequence[int],
    groups: PlateGroups | None,
    prior: PriorConfig,
    previous_WK: NDArray[np.floating] | None = None,
    blend: float = 0.9,
    fraction: float = 1.0,
) -> PseudoLabels:
    """Names wells by their blended logits, each plate restricted to its group and balanced.

    The arrangement of every experiment is inferred from the blended logits, never read from labels. Where it is
    not clear, or the experiment fits none, its wells are balanced over all treatments together, also under `refuse`,
    which is about final answers. Several wells may get the same label: this is an arg-max, not an assignment.

    Args:
        logits_WK: new logits of the treatment classes, averaged over teachers and passes, (W, K).
        experiments_W: the experiment of each well.
        plates_W: the plate number of each well.
        groups: learned from the fold's training experiments; None where the screen has no plate design.
        prior: with `enabled` false, or without groups, labels are the arg-max of a plain softmax over treatments.
        previous_WK: the last refresh's `logits_WK`; None at the first, which is all new.
        blend: share of the new logits.
        fraction: share of the wells that get a label, the most confident of each competition first (rounded up): plates
            differ in quality, and a screen-wide share would leave the groups of weak plates without labels. Without the
            prior, the most confident of all.

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
    if not prior.enabled or groups is None:
        prob_WK = scipy.special.softmax(blended_WK.astype(np.float64), axis=1)
        confidence_W = prob_WK.max(axis=1)
        left_w = least_confident(confidence_W, fraction)
        return _labels(prob_WK.argmax(axis=1), prob_WK, confidence_W, left_w, blended_WK, {})
    arrangements = infer_arrangements(blended_WK, experiments_W, plates_W, groups, prior.permutations)
    # Wells of no competition, where siRNAs repeat, keep their arg-max.
    prob_WK = scipy.special.softmax(blended_WK.astype(np.float64), axis=1)
    class_W, confidence_W = prob_WK.argmax(axis=1), prob_WK.max(axis=1)
    left: list[NDArray[np.intp]] = []
    free_W = np.ones(wells, dtype=bool)
    for part in competitions(experiments_W, plates_W, arrangements, groups, prior):
        log_prob_wk = part.log_prob(blended_WK)
        balanced_wk = balanced(log_prob_wk, prior)
        best_w = balanced_wk.argmax(axis=1)
        # A sharp balance names better, but its probabilities are too sure of it.
        prob_wk = np.exp(expected(log_prob_wk, balanced_wk, prior))
        class_W[part.wells_w] = part.classes_k[best_w]
        confidence_W[part.wells_w] = prob_wk[np.arange(len(best_w)), best_w]
        prob_WK[part.wells_w] = 0.0
        prob_WK[np.ix_(part.wells_w, part.classes_k)] = prob_wk
        left.append(part.wells_w[least_confident(confidence_W[part.wells_w], fraction)])
        free_W[part.wells_w] = False
    free_w = np.flatnonzero(free_W)
    left.append(free_w[least_confident(confidence_W[free_w], fraction)])
    return _labels(class_W, prob_WK, confidence_W, np.concatenate(left), blended_WK, arrangements)


def least_confident(confidence_W: NDArray[np.float64], fraction: float) -> NDArray[np.intp]:
    """The wells beyond the most confident share; of equally confident wells the first are kept."""
    kept = math.ceil(fraction * len(confidence_W) - 1e-9)
    return np.argsort(-confidence_W, kind="stable")[kept:]


def _labels(
    class_W: NDArray[np.intp],
    prob_WK: NDArray[np.float64],
    confidence_W: NDArray[np.float64],
    left_w: NDArray[np.intp],
    blended_WK: NDArray[np.float32],
    arrangements: Mapping[str, Arrangement],
) -> PseudoLabels:
    class_W[left_w] = -1
    prob_WK[left_w] = 0.0
    return PseudoLabels(class_W, prob_WK.astype(np.float32), confidence_W, blended_WK, arrangements)
