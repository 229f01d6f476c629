"""Which wells of a plate are unlike its others, and in what: blurred, without a stain, saturated, nearly empty. Pure NumPy.

W wells of a plate, C channels. A well is judged against the wells beside it, so that it needs neither labels nor a fixed
limit; a siRNA that kills cells is found, too, for whoever looks to tell one from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.evaluation.quality.robust_scores import robust_scores
from components.core.evaluation.quality.site_quality import SiteQuality

LIMIT = 5.0
"""Robust standard deviations from which on a well is named; of normal values one in 1.7 million is as far."""
LEAST_SATURATED = 0.001
"""Share of saturated pixels below which none is worth a look, however clean the others are."""


@dataclass(frozen=True)
class WellQuality:
    """One well.

    Attributes:
        focus_C: of its blurriest site, by channel; NaN where that is constant.
        saturated_C: of its most saturated site.
        nuclei: mean over its sites.
    """

    focus_C: NDArray[np.float64]
    saturated_C: NDArray[np.float64]
    nuclei: float


def well_quality(sites: Sequence[SiteQuality]) -> WellQuality:
    """One well from its sites, at least one."""
    focus_SC = np.array([site.focus_C for site in sites])
    # A constant channel of one site is not hidden by the other site's.
    blurriest_C = np.where(np.isnan(focus_SC).any(axis=0), np.nan, focus_SC.min(axis=0))
    saturated_C = np.array([site.saturated_C for site in sites]).max(axis=0)
    return WellQuality(blurriest_C, saturated_C, float(np.mean([site.nuclei for site in sites])))


def reasons_to_look(wells: Sequence[WellQuality], channels: Sequence[str]) -> list[list[str]]:
    """What is odd about each well of a plate, in words; empty for most.

    Args:
        wells: of one plate.
        channels: names, in the order of the wells' values.
    """
    reasons: list[list[str]] = [[] for _ in wells]
    if not wells:
        return reasons
    focus_WC = np.array([well.focus_C for well in wells])
    saturated_WC = np.array([well.saturated_C for well in wells])
    for c, channel in enumerate(channels):
        # Logarithms, for blur divides. The noise of the camera is all fine structure: where a stain or the cells are missing it
        # alone is left, and looks sharper than any image.
        with np.errstate(divide="ignore"):
            sharp_W = robust_scores(np.log(focus_WC[:, c]))
        bright_W = robust_scores(saturated_WC[:, c])
        for w, found in enumerate(reasons):
            if np.isnan(focus_WC[w, c]):
                found.append(f"{channel} is constant")
            elif sharp_W[w] < -LIMIT:
                found.append(f"{channel} is blurred")
            elif sharp_W[w] > LIMIT:
                found.append(f"{channel} shows little but noise")
            if bright_W[w] > LIMIT and saturated_WC[w, c] >= LEAST_SATURATED:
                found.append(f"{channel} is saturated")
    nuclei_W = np.array([well.nuclei for well in wells])
    # Square roots, for of counts they have the same spread whether there are few cells or many (Bartlett 1936).
    for found, score, share in zip(reasons, robust_scores(np.sqrt(nuclei_W)), nuclei_W, strict=True):
        if score < -LIMIT or share == 0.0 < np.median(nuclei_W):
            found.append("few cells")
        elif score > LIMIT:
            found.append("many cells")
    return reasons
