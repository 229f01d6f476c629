"""Quality control of new plates, well by well: focus, saturation, cell density, and wells unlike their plate. Pure.

S sites, M measures, C channels, G grey levels, H and W pixels of an image. No label is needed: a well is compared with the other
wells of its plate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.core.screen.histograms import histogram
from components.core.screen.plane_header import Pixels

WHITE_NOISE = 20.0
"""Focus of pixels that do not depend on each other: the sum of the Laplacian's squared weights, 4 * 1 + 16."""
LIMIT = 5.0
"""Robust standard deviations from which a well is flagged; one normal value in 1.7 million is as far."""
LEAST_SATURATED = 0.001
"""Fraction of saturated pixels below which no well is flagged, however clean the others are."""
MOSTLY_NOISE = 0.75 * WHITE_NOISE
"""Focus above which camera noise makes up three quarters of the variance, as if a stain or the cells were missing: no lens
resolves single pixels. 18 sites of RxRx1 are below 1.1."""
CAMERA_BITS = (10, 12, 14)
"""Bits of a pixel of cameras whose images have 16."""
_NUCLEI = re.compile(r"(?<![a-z])(dna|dapi|hoechst|nucle(i|us|ar)|draq5|h2b)(?![a-z])", re.IGNORECASE)
# Factors that turn the median and the mean absolute deviation of normal values into their standard deviation.
_MAD, _MEAN_DEVIATION = 1.4826, 1.2533


def focus(pixels_CHW: Pixels) -> NDArray[np.float64]:
    """Variance of the Laplacian over the variance of the grey levels, by channel, (C,); NaN for a constant channel.

    Blur lowers it; brightness, contrast, flips and quarter turns do not change it. Camera noise raises it, so that values
    compare within a channel of a plate and not between channels.

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


def saturated(counts_CG: NDArray[np.integer], level: int = -1) -> NDArray[np.float64]:
    """Fraction of the pixels at the level of saturation, by default the brightest; counts (..., G), some in each channel."""
    return np.asarray(counts_CG[..., level] / counts_CG.sum(axis=-1), np.float64)


def saturation_level(counts_CG: NDArray[np.integer]) -> int:
    """The grey level at which pixels are saturated: the brightest, or the largest of the camera if it has fewer bits.

    Such a camera shows by its largest value, which no pixel exceeds and more pixels have than have the value below it.

    Args:
        counts_CG: pixels by grey level, of all plates together.
    """
    counts_G = counts_CG.sum(axis=0)
    largest = int(np.flatnonzero(counts_G)[-1])
    of_camera = largest in {2**bits - 1 for bits in CAMERA_BITS} and counts_G[largest] > counts_G[largest - 1]
    return largest if of_camera else len(counts_G) - 1


def nuclei_channel(channels: Sequence[str]) -> int | None:
    """The index of the channel whose name says that it shows nuclei: nuclei, DNA, DAPI, Hoechst; None without one."""
    return next((c for c, name in enumerate(channels) if _NUCLEI.search(name)), None)


def otsu_threshold(counts_256: NDArray[np.integer]) -> int:
    """The grey level that separates dark from bright best: the variance between the two classes is largest.

    Args:
        counts_256: pixels by grey level, shape (256,), or (65536,) of 16 bits.

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
    """The fraction of the nuclei channel's pixels above the threshold: a proxy of cell density, without segmentation.

    Args:
        counts_256: pixels of a site by grey level, shape (256,), or (65536,) of 16 bits.
        threshold: Otsu's, of the plate. The site's own would find nuclei in an empty well.
    """
    return float(counts_256[threshold + 1 :].sum() / counts_256.sum())


def site_quality(pixels_CHW: Pixels, threshold: int, nuclei: int | None, level: int = -1) -> NDArray[np.float64]:
    """Focus by channel, saturated fraction by channel, and the nuclear fraction of a site: M = 2 C + 1 values.

    Args:
        pixels_CHW: the site's channels.
        threshold: Otsu's, of the plate's nuclei channel.
        nuclei: index of that channel; None if the screen has none, and the nuclear fraction is NaN.
        level: of `saturation_level`.
    """
    counts_CG = histogram(pixels_CHW)
    share = np.nan if nuclei is None else nuclear_fraction(counts_CG[nuclei], threshold)
    return np.concatenate([focus(pixels_CHW), saturated(counts_CG, level), [share]])


def well_quality(sites_SM: NDArray[np.float64], well_S: NDArray[np.integer], channels: Sequence[str]) -> pd.DataFrame:
    """Measures of wells, from their sites.

    Args:
        sites_SM: rows of `site_quality`.
        well_S: number of each site's well.
        channels: names, in the order of the measures.

    Returns:
        A row a well, by number: nuclei_share (the mean over sites; left out if NaN), and by channel focus_* (of the blurriest
        site), saturated_* (of the most saturated site) and noisiest_* (the largest focus). focus_* and noisiest_* are NaN if the
        channel is constant in any site.
    """
    focus, saturated, noisiest = (columns(measure, channels) for measure in ("focus", "saturated", "noisiest"))
    sites = pd.DataFrame(sites_SM, columns=[*focus, *saturated, "nuclei_share"])
    by_well = sites.groupby(well_S)
    constant = sites[focus].isna().groupby(well_S).any()
    share = [by_well["nuclei_share"].mean()] if sites["nuclei_share"].notna().any() else []
    return pd.concat(
        [
            *share,
            by_well[focus].min().mask(constant),
            by_well[saturated].max(),
            by_well[focus].max().mask(constant).set_axis(noisiest, axis=1),
        ],
        axis=1,
    )


def columns(measure: str, channels: Sequence[str]) -> list[str]:
    """The columns of a measure, one a channel."""
    return [f"{measure}_{channel}" for channel in channels]


def by_channel(table: pd.DataFrame, measure: str, channels: Sequence[str]) -> pd.DataFrame:
    """The columns of a measure, named by channel."""
    return table[columns(measure, channels)].set_axis(list(channels), axis=1)


def robust_scores(values: pd.Series[float]) -> pd.Series[float]:
    """(x - median) / deviation, where the deviation comes from the median absolute deviation, which outliers do not move.

    If that is 0, because more than half of the values are equal, the mean absolute deviation takes its place. Equal values
    have the score 0. A NaN stays NaN and does not affect the others.

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers, ISBN 978-0873892476.
    """
    apart = values - values.median()
    deviation = _MAD * apart.abs().median() or _MEAN_DEVIATION * apart.abs().mean()
    return apart / deviation if deviation else apart * 0.0


def reasons_to_look(wells: pd.DataFrame, channels: Sequence[str]) -> list[str]:
    """How each well of a plate differs from the others, such as `blurred: nuclei, actin; few cells`; empty for most.

    Args:
        wells: the plate's rows of `well_quality`.
        channels: names of the channels.
    """
    focus, saturated, noisiest = (by_channel(wells, name, channels) for name in ("focus", "saturated", "noisiest"))
    noise = noisiest > MOSTLY_NOISE
    with np.errstate(divide="ignore"):  # log 0
        sharpness = focus.apply(np.log)  # because blur divides
    odd = {
        "constant": focus.isna(),
        "little but noise": noise,
        "blurred": (sharpness.apply(robust_scores) < -LIMIT) & ~noise,
        "saturated": (saturated.apply(robust_scores) > LIMIT) & (saturated >= LEAST_SATURATED),
    }
    reasons = pd.DataFrame({what: found.apply(_listed, axis=1) for what, found in odd.items()}, index=wells.index)
    for what in odd:
        reasons[what] = reasons[what].where(reasons[what] == "", f"{what}: " + reasons[what])
    if "nuclei_share" in wells:
        nuclei = wells["nuclei_share"]
        # Square roots of counts have the same spread for few and for many cells (Bartlett 1936).
        cells = robust_scores(nuclei**0.5)
        reasons["few"] = np.where((cells < -LIMIT) | ((nuclei == 0) & (nuclei.median() > 0)), "few cells", "")
        reasons["many"] = np.where(cells > LIMIT, "many cells", "")
    return ["; ".join(filter(None, row)) for row in reasons.itertuples(index=False)]


def _listed(odd: pd.Series[bool]) -> str:
    return "all channels" if odd.all() and len(odd) > 1 else ", ".join(odd.index[odd])
