"""Calibration of confidences: temperature scaling, reliability, calibration error. Pure. W wells, K classes of a well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

# A fit on a few wells that are all correct would diverge to zero; beyond these bounds a probability means nothing anyway.
LOWEST, HIGHEST = 0.05, 20.0
BINS = 10


def fit_temperature(logits: Sequence[NDArray[np.floating]], truth: Sequence[NDArray[np.intp]]) -> float:
    """The temperature T in [0.05, 20] that makes softmax(logits / T) most likely on wells whose class is known.

    Args:
        logits: blocks of logits or log-probabilities, each (W, K); blocks may differ in their classes, as plates do.
        truth: for each block the column of each well's true class, (W,); a well with -1, which has none, does not count.

    Raises:
        ValueError: no well counts.

    Source: Guo et al. 2017 (arXiv:1706.04599), minimising the negative log-likelihood over log T.
    """
    kept = []
    for logits_WK, truth_W in zip(logits, truth, strict=True):
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


def reliability_bins(confidence_W: ArrayLike, correct_W: ArrayLike) -> pd.DataFrame:
    """Wells in ten bins of equal width over [0, 1]: mean `confidence`, `accuracy`, number of `wells`; no empty bins.

    Args:
        confidence_W: probabilities in [0, 1], shape (W,).
        correct_W: whether each prediction is the truth, shape (W,).
    """
    table = pd.DataFrame({"confidence": np.asarray(confidence_W, float), "accuracy": np.asarray(correct_W, float)})
    by_bin = table.groupby((table["confidence"] * BINS).astype(int).clip(upper=BINS - 1))
    return by_bin.mean().assign(wells=by_bin.size()).reset_index(drop=True)


def expected_calibration_error(confidence_W: ArrayLike, correct_W: ArrayLike) -> float:
    """Mean distance of accuracy and confidence over bins, weighted by wells (Naeini et al. 2015).

    Raises:
        ValueError: no wells.
    """
    table = reliability_bins(confidence_W, correct_W)
    if table.empty:
        raise ValueError("the calibration error of no wells is not defined")
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["wells"]))


def kept_above(
    confidence_W: ArrayLike, correct_W: ArrayLike, thresholds: Sequence[float]
) -> list[tuple[float, float, float | None]]:
    """For each threshold: itself, the fraction of wells at or above it, and their accuracy (None if there are none)."""
    p_W, hit_W = np.asarray(confidence_W), np.asarray(correct_W)
    kept = [(threshold, p_W >= threshold) for threshold in thresholds]
    return [(t, float(kept_W.mean()), float(hit_W[kept_W].mean()) if kept_W.any() else None) for t, kept_W in kept]
