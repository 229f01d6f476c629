"""What one look at a site's pixels tells of its quality. Pure NumPy.

C channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.evaluation.quality.cell_density import nuclear_share
from components.core.evaluation.quality.focus import focus
from components.core.evaluation.quality.saturation import saturated
from components.core.screen.histograms import histogram


@dataclass(frozen=True)
class SiteQuality:
    """One site.

    Attributes:
        focus_C: see focus.focus.
        saturated_C: see saturation.saturated.
        nuclei: share of the pixels that are nuclei, see cell_density.
    """

    focus_C: NDArray[np.float64]
    saturated_C: NDArray[np.float64]
    nuclei: float


def site_quality(pixels_CHW: NDArray[np.uint8], threshold: int, nuclei: int = 0) -> SiteQuality:
    """Looks at a site.

    Args:
        pixels_CHW: its channels, uint8.
        threshold: Otsu's, of the plate's nuclei channel.
        nuclei: index of that channel.
    """
    counts_C256 = histogram(pixels_CHW)
    return SiteQuality(focus(pixels_CHW), saturated(counts_C256), nuclear_share(counts_C256[nuclei], threshold))
