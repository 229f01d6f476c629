"""Quality control of new plates, well by well: focus, saturation, cell density, and wells unlike their plate. Pure NumPy.

S sites, W wells of a plate, C channels, H and W pixels of an image. No label is needed: a well is judged against the other
wells of its plate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.screen.histograms import histogram

WHITE_NOISE = 20.0
"""Focus of pixels that do not depend on each other: the sum of the Laplacian's squared weights, 4 * 1 + 16."""
LIMIT = 5.0
"""Robust standard deviations from which a well is reported; of normal values one in 1.7 million is as far."""
LEAST_SATURATED = 0.001
"""Fraction of saturated pixels below which none is worth a look, however clean the others are."""
MOSTLY_NOISE = 0.75 * WHITE_NOISE
"""Focus above which three quarters or more of the variance are the camera's noise, as if a stain or the cells are missing:
no lens draws single pixels. 18 sites of RxRx1 are below 1.1."""
# Factors that turn the median and the mean absolute deviation of normal values into their standard deviation.
_MAD, _MEAN_DEVIATION = 1.4826, 1.2533


def focus(pixels_CHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian over the variance of the grey levels, by channel.

    Blur lowers it; brightness, contrast, flips and quarter turns do not change it. Camera noise raises it, so that values
    compare within a channel of a plate and not between channels.

    Args:
        pixels_CHW: shape (C, H, W), at least 3 x 3 pixels.

    Returns:
        Shape (C,), larger is sharper; NaN for a channel that is constant, which has no structure to be sharp or not.

    Raises:
        ValueError: fewer than 3 pixels along a side.

    Source: variance of the Laplacian, Pech-Pacheco et al. 2000 (doi:10.1109/ICPR.2000.903548); taken relative to the
    variance because focus measures of screens must not follow the stain (Bray et al. 2012, doi:10.1177/1087057111420292).
    """
    if min(pixels_CHW.shape[1:]) < 3:
        raise ValueError(f"a Laplacian needs 3 x 3 pixels, got {pixels_CHW.shape[1]} x {pixels_CHW.shape[2]}")
    x_CHW = pixels_CHW.astype(np.int32)
    laplacian_CHW = x_CHW[:, :-2, 1:-1] + x_CHW[:, 2:, 1:-1] + x_CHW[:, 1:-1, :-2] + x_CHW[:, 1:-1, 2:]
    laplacian_CHW -= 4 * x_CHW[:, 1:-1, 1:-1]
    fine_C, all_C = laplacian_CHW.var(axis=(1, 2)), x_CHW.var(axis=(1, 2))
    ratio_C: NDArray[np.float64] = np.divide(fine_C, all_C, out=np.full(len(x_CHW), np.nan), where=all_C > 0)
    return ratio_C


def saturated(counts_C256: NDArray[np.integer]) -> NDArray[np.float64]:
    """Fraction of the pixels at the brightest grey level; counts of shape (..., 256), some in every channel."""
    return np.asarray(counts_C256[..., -1] / counts_C256.sum(axis=-1), np.float64)


def otsu_threshold(counts_256: NDArray[np.integer]) -> int:
    """The grey level that separates dark from bright best: levels above it are bright.

    It maximises the variance between the two classes; of equally good levels the lowest.

    Args:
        counts_256: pixels by grey level, shape (256,), at least one pixel.

    Raises:
        ValueError: no pixels.

    Source: Otsu 1979 (doi:10.1109/TSMC.1979.4310076).
    """
    counts = counts_256.astype(np.float64)
    total = counts.sum()
    if not total:
        raise ValueError("a histogram without pixels has no threshold")
    dark_256 = np.cumsum(counts) / total
    first_256 = np.cumsum(counts * np.arange(len(counts))) / total
    spread_256 = dark_256 * (1.0 - dark_256)
    between_256 = np.divide(
        (first_256[-1] * dark_256 - first_256) ** 2, spread_256, out=np.zeros_like(counts), where=spread_256 > 0
    )
    return int(between_256.argmax())


def nuclear_fraction(counts_256: NDArray[np.integer], threshold: int) -> float:
    """The fraction of a site's pixels brighter than the threshold: a proxy of cell density, without segmentation.

    Args:
        counts_256: the site's nuclei channel by grey level, shape (256,), at least one pixel.
        threshold: Otsu's, of the plate's nuclei channel. The site's own would find nuclei in an empty well.
    """
    return float(counts_256[threshold + 1 :].sum() / counts_256.sum())


@dataclass(frozen=True)
class SiteQuality:
    """One site: its focus and saturated fraction by channel, and the fraction of its pixels that are nuclei."""

    focus_C: NDArray[np.float64]
    saturated_C: NDArray[np.float64]
    nuclei: float


def site_quality(pixels_CHW: NDArray[np.uint8], threshold: int, nuclei: int = 0) -> SiteQuality:
    """Measures a site.

    Args:
        pixels_CHW: its channels, uint8.
        threshold: Otsu's, of the plate's nuclei channel.
        nuclei: index of that channel.
    """
    counts_C256 = histogram(pixels_CHW)
    return SiteQuality(focus(pixels_CHW), saturated(counts_C256), nuclear_fraction(counts_C256[nuclei], threshold))


@dataclass(frozen=True)
class WellQuality:
    """One well.

    Attributes:
        focus_C: focus of its blurriest site, by channel; NaN if a site is constant.
        noisiest_C: focus of its site with the largest.
        saturated_C: saturated fraction of its most saturated site.
        nuclei: mean over its sites.
    """

    focus_C: NDArray[np.float64]
    noisiest_C: NDArray[np.float64]
    saturated_C: NDArray[np.float64]
    nuclei: float


def well_quality(sites: Sequence[SiteQuality]) -> WellQuality:
    """One well from its sites, at least one."""
    focus_SC = np.array([site.focus_C for site in sites])
    # A constant channel of one site is not hidden by the other site's.
    blurriest_C = np.where(np.isnan(focus_SC).any(axis=0), np.nan, focus_SC.min(axis=0))
    saturated_C = np.array([site.saturated_C for site in sites]).max(axis=0)
    return WellQuality(blurriest_C, focus_SC.max(axis=0), saturated_C, float(np.mean([site.nuclei for site in sites])))


def robust_scores(values_W: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x - median) / deviation, the deviation from the median absolute deviation, which outliers do not move.

    If more than half of the values are equal, that is 0; then the mean absolute deviation takes its place. Equal values
    all have the score 0. A NaN stays NaN, and the others are judged without it.

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers, ISBN 978-0873892476.
    """
    known_W = ~np.isnan(values_W)
    if not known_W.any():
        return np.full(len(values_W), np.nan)
    apart_W = values_W - np.median(values_W[known_W])
    size_W = np.abs(apart_W[known_W])
    deviation = _MAD * np.median(size_W) or _MEAN_DEVIATION * size_W.mean()
    return np.asarray(apart_W / deviation if deviation else apart_W * 0.0, np.float64)


def reasons_to_look(wells: Sequence[WellQuality], channels: Sequence[str]) -> list[list[str]]:
    """What is odd about each well of a plate compared with its others; empty for most.

    A siRNA that kills cells is found as well as a fault of the microscope.

    Args:
        wells: the wells of one plate.
        channels: names, in the order of the wells' values.

    Returns:
        For each well its reasons, such as `blurred: nuclei, actin` or `few cells`.
    """
    if not wells:
        return []
    focus_WC = np.array([well.focus_C for well in wells])
    saturated_WC = np.array([well.saturated_C for well in wells])
    noise_WC = np.array([well.noisiest_C for well in wells]) > MOSTLY_NOISE
    # Logarithms, because blur divides.
    with np.errstate(divide="ignore"):
        sharp_WC = np.apply_along_axis(robust_scores, 0, np.log(focus_WC))
    odd_WC = {
        "constant": np.isnan(focus_WC),
        "little but noise": noise_WC,
        "blurred": (sharp_WC < -LIMIT) & ~noise_WC,
        "saturated": (np.apply_along_axis(robust_scores, 0, saturated_WC) > LIMIT) & (saturated_WC >= LEAST_SATURATED),
    }
    nuclei_W = np.array([well.nuclei for well in wells])
    # Square roots of counts have the same spread for few and for many cells (Bartlett 1936).
    score_W = robust_scores(np.sqrt(nuclei_W))
    few_W = (score_W < -LIMIT) | ((nuclei_W == 0.0) & (np.median(nuclei_W) > 0.0))
    reasons = []
    for w in range(len(wells)):
        words = [f"{what}: {_listed(odd_WC[what][w], channels)}" for what in odd_WC if odd_WC[what][w].any()]
        words += ["few cells"] * bool(few_W[w]) + ["many cells"] * bool(score_W[w] > LIMIT)
        reasons.append(words)
    return reasons


def _listed(odd_C: NDArray[np.bool_], channels: Sequence[str]) -> str:
    if odd_C.all() and len(channels) > 1:
        return "all channels"
    return ", ".join(channel for channel, odd in zip(channels, odd_C, strict=True) if odd)
