"""Pixel statistics from 256-bin histograms: exact, and merged by addition. Pure.

C channels, 256 grey values. A plate's histogram is the sum of its sites', an experiment's the sum of its plates'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from components.core.config import Domain
from components.core.storage.manifest import Manifest, PlateRecord

cv2.setNumThreads(0)  # threads run over sites; OpenCV's own would compete with them

BINS = 256
_EXACT_IN_FLOAT32 = 2**24
PlateKey = tuple[str, str]
"""Experiment and plate number."""


def histogram(pixels_CHW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts the grey values of each channel, int64 (C, 256)."""
    counts_C256 = np.empty((len(pixels_CHW), BINS), np.int64)
    for channel_HW, counts_256 in zip(pixels_CHW, counts_C256, strict=True):
        count_greys(channel_HW, counts_256)
    return counts_C256


def count_greys(channel_HW: NDArray[np.uint8], out_256: NDArray[np.int64]) -> None:
    """Counts the grey values of one channel."""
    if channel_HW.size > _EXACT_IN_FLOAT32:
        out_256[:] = np.bincount(channel_HW.ravel(), minlength=BINS)
    else:
        # Four times as fast as bincount, and outside of Python's lock; it counts in float32.
        out_256[:] = cv2.calcHist([channel_HW], [0], None, [BINS], [0, BINS]).ravel()


def mean_std(histogram_C256: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of the counted pixels, grey values, (C,) each; no channel may be empty.

    The sums are exact (Python integers), so the result does not depend on the number or order of pixels.
    """
    means, deviations = [], []
    for counts in histogram_C256.tolist():
        n = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(first / n)
        deviations.append(math.sqrt((n * second - first * first) / (n * n)))
    return np.array(means), np.array(deviations)


def percentile(histogram_C256: NDArray[np.int64], percent: float) -> NDArray[np.int64]:
    """The smallest grey value that at least `percent` % of a channel's pixels do not exceed, (C,); no channel may be empty.

    Agrees with numpy.percentile, method "inverted_cdf".
    """
    cumulative_C256 = np.cumsum(histogram_C256, axis=1)
    rank_C1 = np.maximum(np.ceil(cumulative_C256[:, -1:] * (percent / 100.0)), 1)
    return np.asarray(np.argmax(cumulative_C256 >= rank_C1, axis=1), np.int64)


def domain_statistics(
    manifest: Manifest, domain: Domain
) -> Mapping[PlateKey, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The mean and standard deviation that standardise each plate's pixels.

    Args:
        manifest: the packed screen.
        domain: over which pixels: `plate`, `experiment`, `cell_type`, `global` (the whole manifest), or `none`, which
            scales 0-255 to 0-1 whatever the pixels.

    Returns:
        By (experiment, plate): mean and standard deviation, each (C,), float64, grey values. A channel that is constant
        over its domain has deviation 1, so that standardised pixels are 0 and not undefined.
    """
    if domain == "none":
        fixed = np.zeros(manifest.channels), np.full(manifest.channels, float(BINS - 1))
        return {(plate.experiment, plate.plate): fixed for plate in manifest.plates}
    plates_of: dict[object, list[PlateRecord]] = {}
    for plate in manifest.plates:
        keys = {"global": None, "cell_type": plate.cell_type, "experiment": plate.experiment}
        plates_of.setdefault(keys.get(domain, (plate.experiment, plate.plate)), []).append(plate)
    statistics: dict[PlateKey, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for plates in plates_of.values():
        mean_C, std_C = mean_std(np.sum([plate.histograms for plate in plates], axis=0, dtype=np.int64))
        both = mean_C, np.where(std_C > 0, std_C, 1.0)
        statistics |= {(plate.experiment, plate.plate): both for plate in plates}
    return statistics
