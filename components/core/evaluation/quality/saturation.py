"""How much of a site is saturated, by channel, from its histogram. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BRIGHTEST = 255


def saturated(counts_C256: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of the pixels at the brightest grey level, whose true brightness is lost.

    Args:
        counts_C256: pixels by grey level, shape (..., 256), some in every channel.

    Returns:
        Shape (...), 0 to 1.
    """
    return np.asarray(counts_C256[..., BRIGHTEST] / counts_C256.sum(axis=-1), np.float64)
