"""Which wells of a plate are unlike its others, and in what: blurred, without a stain, saturated, nearly empty. Pure NumPy.

W wells of a plate, C channels. A well is judged against the wells beside it, so that it needs neither labels nor fixed
limits, but where noise alone is left; a siRNA that kills cells is found, too, for whoever looks to tell one from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.evaluation.quality.focus import WHITE_NOISE
from components.core.evaluation.quality.robust_scores import robust_scores
from components.core.evaluation.quality.site_quality import SiteQuality

LIMIT = 5.0
"""Robust standard deviations from which on a well is named; of normal values one in 1.7 million is as far."""
LEAST_SATURATED = 0.001
"""Share of saturated pixels below which none is worth a look, however clean the others are."""
MOSTLY_NOISE = 0.75 * WHITE_NOISE
"""Focus above which three quarters or more of the variance are the camera's noise, as where a stain or the cells are missing:
no lens draws single pixels. 18 sites of RxRx1 are below 1.1."""


@dataclass(frozen=True)
class WellQuality:
    """One well.

    Attributes:
        focus_C: of its blurriest site, by channel; NaN where that is constant.
        noisiest_C: focus of its site where it is largest.
        saturated_C: of its most saturated site.
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


def reasons_to_look(wells: Sequence[WellQuality], channels: Sequence[str]) -> list[list[str]]:
    """What is odd about each well of a plate, in words; empty for most.

    Args:
        wells: of one plate.
        channels: names, in the order of the wells' values.

    Returns:
        For each well its reasons, as `blurred: nuclei, actin` or `few cells`.
    """
    if not wells:
        return []
    focus_WC = np.array([well.focus_C for well in wells])
    saturated_WC = np.array([well.saturated_C for well in wells])
    noise_WC = np.array([well.noisiest_C for well in wells]) > MOSTLY_NOISE
    # Logarithms, for blur divides.
    with np.errstate(divide="ignore"):
        sharp_WC = _by_channel(np.log(focus_WC))
    odd_WC = {
        "constant": np.isnan(focus_WC),
        "little but noise": noise_WC,
        "blurred": (sharp_WC < -LIMIT) & ~noise_WC,
        "saturated": (_by_channel(saturated_WC) > LIMIT) & (saturated_WC >= LEAST_SATURATED),
    }
    nuclei_W = np.array([well.nuclei for well in wells])
    # Square roots, for of counts they have the same spread whether there are few cells or many (Bartlett 1936).
    score_W = robust_scores(np.sqrt(nuclei_W))
    few_W = (score_W < -LIMIT) | ((nuclei_W == 0.0) & (np.median(nuclei_W) > 0.0))
    reasons = []
    for w in range(len(wells)):
        words = [f"{what}: {_names(odd_WC[what][w], channels)}" for what in odd_WC if odd_WC[what][w].any()]
        words += ["few cells"] * bool(few_W[w]) + ["many cells"] * bool(score_W[w] > LIMIT)
        reasons.append(words)
    return reasons


def _by_channel(values_WC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Robust scores of each channel's wells."""
    return np.stack([robust_scores(values_W) for values_W in values_WC.T], axis=1)


def _names(odd_C: NDArray[np.bool_], channels: Sequence[str]) -> str:
    if odd_C.all() and len(channels) > 1:
        return "all channels"
    return ", ".join(channel for channel, odd in zip(channels, odd_C, strict=True) if odd)
