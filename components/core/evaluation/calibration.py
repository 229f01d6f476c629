"""Calibration of confidences: temperature scaling, reliability, calibration error. Pure. W wells, K classes of a well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

# A fit on a few wells that are all correct would diverge to zero; beyond these bounds a probability means nothing anyway.
LOWEST, HIGHEST = 0.05, 20.0
BINS = 10
# The log-probability of a wrong prediction counts as at most this, so that a single sure mistake does not weigh infinitely.
LEAST_DOUBT = -1e-12


def fit_temperature(
    logits: Sequence[NDArray[np.floating]],
    truth: Sequence[NDArray[np.intp]],
    predicted: Sequence[NDArray[np.intp]] | None = None,
) -> float:
    """The temperature T in [0.05, 20] of softmax(logits / T) that wells whose class is known make most likely.

    Args:
        logits: blocks of logits or log-probabilities, each (W, K); blocks may differ in their classes, as plates do.
        truth: for each block the column of each well's true class, (W,); a well with -1, which has none, does not count.
        predicted: for each block the predicted column of each well, (W,). T then makes it most likely that these are right or
            wrong as they are, instead of the true classes. Predictions that are assigned one to one are right more often
            than their probabilities say at the T of the true classes.

    Raises:
        ValueError: no well counts.

    Source: Guo et al. 2017 (arXiv:1706.04599), minimising the negative log-likelihood over log T.
    """
    kept: dict[int, list[tuple[NDArray[Any], ...]]] = {}
    for n, (logits_WK, truth_W) in enumerate(zip(logits, truth, strict=True)):
        known_W = truth_W >= 0
        if known_W.any():
            columns_W = truth_W if predicted is None else predicted[n]
            right_W = truth_W[known_W] == columns_W[known_W]
            block = logits_WK[known_W].astype(np.float64), columns_W[known_W], right_W
            kept.setdefault(logits_WK.shape[1], []).append(block)
    if not kept:
        raise ValueError("no well with a known class to fit a temperature on")
    joined = [tuple(map(np.concatenate, zip(*blocks, strict=True))) for blocks in kept.values()]

    def loss(log_t: float) -> float:
        total = 0.0
        for block_WK, columns_W, right_W in joined:
            scaled_WK = block_WK / np.exp(log_t)
            log_prob_W = scaled_WK[np.arange(len(columns_W)), columns_W] - scipy.special.logsumexp(scaled_WK, axis=1)
            total -= float(log_prob_W[right_W].sum())
            if not right_W.all():
                wrong_W = np.minimum(log_prob_W[~right_W], LEAST_DOUBT)
                total -= float(np.log(-np.expm1(wrong_W)).sum())
        return total

    lowest, highest = np.log(LOWEST), np.log(HIGHEST)
    if predicted is not None:  # this loss may have more than one minimum
        grid = np.linspace(lowest, highest, 25)
        best = int(np.argmin([loss(log_t) for log_t in grid]))
        lowest, highest = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = scipy.optimize.minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


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
