"""How sharp a site is, by channel: fine structure relative to all structure. Pure NumPy.

S sites, C channels, H and W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WHITE_NOISE = 20.0
"""Focus of pixels that do not depend on each other: the sum of the Laplacian's squared weights, 4 * 1 + 16."""


def focus(pixels_CHW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian over the variance of the grey levels, by channel.

    Blur lowers it; brightness and contrast do not change it, nor do flips and quarter turns. Camera noise raises it, so that
    values compare within a channel of a plate and not between channels.

    Args:
        pixels_CHW: shape (C, H, W), at least 3 x 3 pixels.

    Returns:
        Shape (C,), larger is sharper; NaN for a channel that is constant, which has no structure to be sharp or not.

    Raises:
        ValueError: fewer than 3 pixels along a side.

    Source: variance of the Laplacian, Pech-Pacheco et al. 2000 (doi:10.1109/ICPR.2000.903548); taken relative to the
    variance as focus measures of screens must not follow the stain (Bray et al. 2012, doi:10.1177/1087057111420292).
    """
    if min(pixels_CHW.shape[1:]) < 3:
        raise ValueError(f"a Laplacian needs 3 x 3 pixels, got {pixels_CHW.shape[1]} x {pixels_CHW.shape[2]}")
    x_CHW = pixels_CHW.astype(np.int32)
    laplacian_CHW = x_CHW[:, :-2, 1:-1] + x_CHW[:, 2:, 1:-1] + x_CHW[:, 1:-1, :-2] + x_CHW[:, 1:-1, 2:]
    laplacian_CHW -= 4 * x_CHW[:, 1:-1, 1:-1]
    fine_C, all_C = laplacian_CHW.var(axis=(1, 2)), x_CHW.var(axis=(1, 2))
    ratio_C: NDArray[np.float64] = np.divide(fine_C, all_C, out=np.full(len(x_CHW), np.nan), where=all_C > 0)
    return ratio_C
