"""Calibration of confidences: temperature scaling, reliability, calibration error. Pure NumPy and SciPy.

W wells, K classes that a well may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

# A fit on few wells that are all right would run away to zero; beyond these bounds a probability means nothing anyway.
LOWEST, HIGHEST = 0.05, 20.0
BINS = 10


def fit_temperature(logits: Sequence[NDArray[np.floating]], truth: Sequence[NDArray[np.intp]]) -> float:
    """The temperature T that makes softmax(logits / T) most likely on wells whose class is known.

    Args:
        logits: blocks of logits or log-probabilities, each (W, K); blocks may differ in their classes, as plates do.
        truth: for each block the column of the true class of each well, (W,). Wells with -1, whose true class is not
            among the columns, do not count: no temperature can mend them.

    Returns:
        T in [0.05, 20].

    Raises:
        ValueError: no well counts, or shapes differ.

    Source: Guo et al. 2017 (arXiv:1706.04599), minimising the negative log-likelihood over log T.
    """
    kept = []
    for logits_WK, truth_W in zip(logits, truth, strict=True):
        if logits_WK.shape[:1] != truth_W.shape:
            raise ValueError(f"{len(logits_WK)} rows of logits but {len(truth_W)} true classes")
        known_W = truth_W >= 0
        if known_W.any():
            kept.append((logits_WK[known_W].astype(np.float64), truth_W[known_W]))
    if not kept:
        raise ValueError("no well with a known class to fit a temperature on")
    # The mean true logit is linear in 1/T, so only the normaliser is recomputed for every T.
    true_sum = sum(float(block_WK[np.arange(len(truth_W)), truth_W].sum()) for block_WK, truth_W in kept)

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        return sum(
            float(scipy.special.logsumexp(block_WK / t, axis=1).sum()) for block_WK, _ in kept
        ) - true_sum / float(t)

    best = scipy.optimize.minimize_scalar(
        loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-3}
    )
    return float(np.exp(best.x))


@dataclass(frozen=True)
class Bin:
    """Wells of similar confidence."""

    confidence: float
    """mean confidence"""
    accuracy: float
    wells: int


def reliability_bins(confidence_W: ArrayLike, correct_W: ArrayLike, bins: int = BINS) -> list[Bin]:
    """Wells in bins of equal width over [0, 1]; empty bins are left out.

    Args:
        confidence_W: probabilities in [0, 1], shape (W,).
        correct_W: whether each prediction is the truth, shape (W,).
        bins: number of bins.
    """
    p_W, hit_W = np.asarray(confidence_W, np.float64), np.asarray(correct_W, np.float64)
    index_W = np.minimum((p_W * bins).astype(np.intp), bins - 1)
    return [
        Bin(float(p_W[chosen].mean()), float(hit_W[chosen].mean()), int(chosen.sum()))
        for b in range(bins)
        if (chosen := index_W == b).any()
    ]


def expected_calibration_error(confidence_W: ArrayLike, correct_W: ArrayLike, bins: int = BINS) -> float:
    """Mean distance of accuracy and confidence over bins, weighted by wells (Naeini et al. 2015).

    Raises:
        ValueError: no wells.
    """
    parts = reliability_bins(confidence_W, correct_W, bins)
    if not parts:
        raise ValueError("the calibration error of no wells is not defined")
    return sum(part.wells * abs(part.accuracy - part.confidence) for part in parts) / sum(part.wells for part in parts)


def kept_above(
    confidence_W: ArrayLike, correct_W: ArrayLike, thresholds: Sequence[float]
) -> list[tuple[float, float, float | None]]:
    """For each threshold: itself, the fraction of wells at or above it, and their accuracy (None if there are none)."""
    p_W, hit_W = np.asarray(confidence_W, np.float64), np.asarray(correct_W, np.float64)
    rows = []
    for threshold in thresholds:
        kept = p_W >= threshold
        rows.append((threshold, float(kept.mean()), float(hit_W[kept].mean()) if kept.any() else None))
    return rows
