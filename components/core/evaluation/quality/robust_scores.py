"""How far values lie from most of their kind, in robust standard deviations. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAD = 1.4826
_MEAN_DEVIATION = 1.2533
"""By which the median and the mean absolute deviation of normal values are to be multiplied for their deviation."""


def robust_scores(values_W: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x - median) / deviation, the deviation by the median absolute deviation, which outliers do not move.

    Where more than half of the values are equal, that is 0; then the mean absolute deviation takes its place. Equal values
    all have the score 0. A NaN stays one, and the others are judged without it.

    Args:
        values_W: any number of them.

    Returns:
        Shape (W,).

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers, ISBN 978-0873892476.
    """
    known_W = ~np.isnan(values_W)
    if not known_W.any():
        return np.full(len(values_W), np.nan)
    apart_W = values_W - np.median(values_W[known_W])
    size_W = np.abs(apart_W[known_W])
    deviation = _MAD * np.median(size_W) or _MEAN_DEVIATION * size_W.mean()
    return np.asarray(apart_W / deviation if deviation else apart_W * 0.0, np.float64)
