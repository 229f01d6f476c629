"""How densely cells lie on a site: the share of pixels that are nuclei. A proxy, without segmentation. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def otsu_threshold(counts_256: NDArray[np.integer]) -> int:
    """The grey level that separates dark from bright best: above it is bright.

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


def nuclear_share(counts_256: NDArray[np.integer], threshold: int) -> float:
    """The share of a site's pixels that are brighter than the threshold.

    The threshold is the plate's, and not the site's own, which would find nuclei in an empty well, too.

    Args:
        counts_256: of the site's nuclei channel by grey level, shape (256,), at least one pixel.
        threshold: of the plate's nuclei channel, see otsu_threshold.
    """
    return float(counts_256[threshold + 1 :].sum() / counts_256.sum())
