"""Reliability of confidences: how often wells named with confidence p are right. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Wells of similar confidence."""

    confidence: float
    """mean confidence"""
    accuracy: float
    wells: int


def reliability_bins(confidence_W: Sequence[float], correct_W: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Wells in bins of equal width over [0, 1]; empty bins are left out.

    Args:
        confidence_W: probabilities in [0, 1], shape (W,).
        correct_W: whether each name is the truth, shape (W,).
        bins: number of bins.
    """
    p_W, hit_W = np.asarray(confidence_W, np.float64), np.asarray(correct_W, np.float64)
    index_W = np.minimum((p_W * bins).astype(np.intp), bins - 1)
    return [
        Bin(float(p_W[chosen].mean()), float(hit_W[chosen].mean()), int(chosen.sum()))
        for b in range(bins)
        if (chosen := index_W == b).any()
    ]


def expected_calibration_error(confidence_W: Sequence[float], correct_W: Sequence[bool], bins: int = BINS) -> float:
    """Mean distance of accuracy and confidence over bins, weighted by wells (Naeini et al. 2015).

    Raises:
        ValueError: no wells.
    """
    if len(confidence_W) == 0:
        raise ValueError("the calibration error of no wells is not defined")
    parts = reliability_bins(confidence_W, correct_W, bins)
    return sum(part.wells * abs(part.accuracy - part.confidence) for part in parts) / len(confidence_W)


def kept_above(
    confidence_W: Sequence[float], correct_W: Sequence[bool], thresholds: Sequence[float]
) -> list[tuple[float, float, float | None]]:
    """For each threshold: the threshold, the share of wells at or above it, and their accuracy (None where none is)."""
    p_W, hit_W = np.asarray(confidence_W, np.float64), np.asarray(correct_W, np.float64)
    rows = []
    for threshold in thresholds:
        kept = p_W >= threshold
        rows.append((threshold, float(kept.mean()), float(hit_W[kept].mean()) if kept.any() else None))
    return rows
