"""Pixel statistics from histograms with a bin for each grey value: exact, and merged by addition. Pure.

C channels, G grey values: 256 of 8-bit pixels, 65,536 of 16-bit ones. A plate's histogram is the sum of its sites', an
experiment's the sum of its plates'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from components.core.config import BatchNormConfig, Domain, StandardiseConfig
from components.core.errors import InputError, shortened
from components.core.screen.plane_header import Pixels
from components.core.screen.wells import Plate
from components.core.storage.manifest import Manifest, PlateRecord

P = TypeVar("P", Plate, PlateRecord)

cv2.setNumThreads(0)  # threads run over sites; OpenCV's own would compete with them

GREYS = {"uint8": 256, "uint16": 65536}
"""G by type of pixel."""
TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""
_EXACT_IN_FLOAT32 = 2**24
PlateKey = tuple[str, str]
"""Experiment and plate number."""


def histogram(pixels_CHW: Pixels) -> NDArray[np.int64]:
    """Counts the grey values of each channel, int64 (C, G)."""
    counts_CG = np.empty((len(pixels_CHW), GREYS[pixels_CHW.dtype.name]), np.int64)
    for channel_HW, counts_G in zip(pixels_CHW, counts_CG, strict=True):
        count_greys(channel_HW, counts_G)
    return counts_CG


def count_greys(channel_HW: Pixels, out_G: NDArray[np.int64]) -> None:
    """Counts the grey values of one channel."""
    if channel_HW.size > _EXACT_IN_FLOAT32:
        out_G[:] = np.bincount(channel_HW.ravel(), minlength=len(out_G))
    else:
        # Four times as fast as bincount, and outside of Python's lock; it counts in float32.
        out_G[:] = cv2.calcHist([channel_HW], [0], None, [len(out_G)], [0, len(out_G)]).ravel()


def mean_std(histogram_CG: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of the counted pixels, grey values, (C,) each; no channel may be empty.

    The sums are exact (Python integers), so the result does not depend on the number or order of pixels.
    """
    means, deviations = [], []
    for counts_G in histogram_CG:
        values = np.flatnonzero(counts_G)
        pairs = list(zip(values.tolist(), counts_G[values].tolist(), strict=True))
        n = sum(count for _, count in pairs)
        first = sum(value * count for value, count in pairs)
        second = sum(value * value * count for value, count in pairs)
        means.append(first / n)
        deviations.append(math.sqrt((n * second - first * first) / (n * n)))
    return np.array(means), np.array(deviations)


def median_deviation(histogram_CG: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of the counted pixels and their median absolute deviation from it x 1.4826, grey values, (C,) each.

    They ignore a minority of bright or dark pixels. No channel may be empty. A channel most of whose pixels are equal has
    deviation 0.
    """
    medians, deviations = [], []
    for counts_G in histogram_CG:
        values = np.flatnonzero(counts_G)
        median = _weighted_median(values.astype(np.float64), counts_G[values])
        medians.append(median)
        deviations.append(TO_DEVIATION * _weighted_median(np.abs(values - median), counts_G[values]))
    return np.array(medians), np.array(deviations)


def _weighted_median(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """numpy.median of the values, each repeated as often as it is counted."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    n = int(cumulative[-1])
    low, high = np.searchsorted(cumulative, [(n - 1) // 2, n // 2], side="right")
    return float((values[order[low]] + values[order[high]]) / 2)


def percentile(histogram_CG: NDArray[np.int64], percent: float) -> NDArray[np.int64]:
    """The smallest grey value that at least `percent` % of a channel's pixels do not exceed, (C,); no channel may be empty.

    Agrees with numpy.percentile, method "inverted_cdf".
    """
    cumulative_CG = np.cumsum(histogram_CG, axis=1)
    rank_C1 = np.maximum(np.ceil(cumulative_CG[:, -1:] * (percent / 100.0)), 1)
    return np.asarray(np.argmax(cumulative_CG >= rank_C1, axis=1), np.int64)


def domain_statistics(
    manifest: Manifest, config: StandardiseConfig
) -> Mapping[PlateKey, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """What standardises each plate's pixels: their mean and standard deviation, or median and robust deviation.

    Args:
        manifest: the packed screen.
        config: over which pixels: those of all wells or of controls, of the `plate`, `experiment`, `cell_type` or the whole
            manifest (`global`); `none` scales the type's range to 0-1 whatever the pixels. Images that are standardised by
            themselves (`image`) have their plate's.

    Returns:
        By (experiment, plate): centre and scale, each (C,), float64, grey values. A channel that is constant over its domain
        has scale 1, so that standardised pixels are 0 and not undefined; where most pixels are equal, so that the robust
        deviation is 0, the standard deviation takes its place.

    Raises:
        InputError: a domain without controls.
    """
    if config.domain == "none":
        channels = len(manifest.channels)
        fixed = np.zeros(channels), np.full(channels, float(GREYS[manifest.dtype] - 1))
        return {(plate.experiment, plate.plate): fixed for plate in manifest.plates}
    statistics: dict[PlateKey, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for plates in _by_domain(manifest.plates, config.domain).values():
        counted = [plate.control_histograms if config.wells == "controls" else plate.histograms for plate in plates]
        counts_CG = np.asarray(sum(counts.array for counts in counted if len(counts)), np.int64)
        if not counts_CG.any():
            raise _without_controls(
                [f"{plate.experiment} plate {plate.plate}" for plate in plates], "standardise.wells"
            )
        mean_C, std_C = mean_std(counts_CG)
        if config.robust:
            mean_C, robust_C = median_deviation(counts_CG)
            std_C = np.where(robust_C > 0, robust_C, std_C)
        both = mean_C, np.where(std_C > 0, std_C, 1.0)
        statistics |= {(plate.experiment, plate.plate): both for plate in plates}
    return statistics


def check_controls(plates: Iterable[Plate], standardise: StandardiseConfig, batch_norm: BatchNormConfig) -> None:
    """Checks, before anything is packed, that domains whose statistics come from controls have some.

    Raises:
        InputError: names the plates of all domains without controls.
    """
    plates = list(plates)
    for domain, wells, field in (
        (standardise.domain, standardise.wells, "standardise.wells"),
        (batch_norm.domain, batch_norm.statistics, "batch_norm.statistics"),
    ):
        if wells == "all" or domain in ("none", "image"):
            continue
        bare = [
            plate.name
            for of_domain in _by_domain(plates, domain).values()
            if all(well.role == "treatment" for plate in of_domain for well in plate.wells)
            for plate in of_domain
        ]
        if bare:
            raise _without_controls(bare, field)


def _without_controls(plates: Sequence[str], field: str) -> InputError:
    return InputError(
        f"no control wells on {shortened(plates)}, which {field} controls needs: mark them in the screen's tables, choose a "
        f"wider domain, or set {field} to all"
    )


def _by_domain(plates: Iterable[P], domain: Domain) -> dict[object, list[P]]:
    """The plates of each domain; of images, those of the plate."""
    found: dict[object, list[P]] = {}
    for plate in plates:
        keys = {"global": None, "cell_type": plate.cell_type, "experiment": plate.experiment}
        found.setdefault(keys.get(domain, (plate.experiment, plate.plate)), []).append(plate)
    return found
