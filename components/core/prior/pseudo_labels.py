"""Pseudo-labels of unlabelled wells under the plate design, for online refreshes. Pure NumPy; training calls it.

W wells, K treatment siRNAs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from components.core.config import PriorConfig
from components.core.prior.arrangement import Arrangement, infer_arrangements
from components.core.prior.balancing import sinkhorn
from components.core.prior.competition import competitions
from components.core.prior.plate_groups import PlateGroups


@dataclass(frozen=True)
class PseudoLabels:
    """One refresh."""

    class_W: NDArray[np.intp]
    """treatment class of each well"""
    confidence_W: NDArray[np.float64]
    """its probability after balancing, in (0, 1]; not calibrated"""
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
) -> PseudoLabels:
    """Names wells by their blended logits, each plate restricted to its group and balanced.

    The arrangement of every experiment is inferred from the blended logits, never read from labels. Where it is
    not clear, the experiment's wells are balanced over all treatments together, also under `refuse`,
    which is about final answers. Several wells may get the same label: this is an arg-max, not an assignment.

    Args:
        logits_WK: new logits of the treatment classes, averaged over teachers and passes, (W, K).
        experiments_W: the experiment of each well.
        plates_W: the plate number of each well.
        groups: learned from the fold's training experiments; None where the screen has no plate design.
        prior: with `enabled` false, or without groups, labels are the arg-max of a plain softmax over treatments.
        previous_WK: the last refresh's `logits_WK`; None at the first, which is all new.
        blend: share of the new logits.

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
        prob_WK = softmax(blended_WK.astype(np.float64), axis=1)
        return PseudoLabels(prob_WK.argmax(axis=1), prob_WK.max(axis=1), blended_WK, {})
    arrangements = infer_arrangements(blended_WK, experiments_W, plates_W, groups, prior.permutations)
    class_W = np.empty(wells, dtype=np.intp)
    confidence_W = np.empty(wells)
    for part in competitions(experiments_W, plates_W, arrangements, groups, prior):
        balanced = sinkhorn(part.log_prob(blended_WK), prior.sinkhorn_iterations, prior.sinkhorn_tolerance)
        class_W[part.wells_w] = part.classes_k[balanced.log_prob_WK.argmax(axis=1)]
        confidence_W[part.wells_w] = np.exp(balanced.log_prob_WK.max(axis=1))
    return PseudoLabels(class_W, confidence_W, blended_WK, arrangements)
