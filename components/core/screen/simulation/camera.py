"""From stains to 8-bit images: optics, illumination, gain, background and noise of a plate. NumPy and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.batch_effects import BatchEffect

CHANNEL_LEVELS_C = {
    "HUVEC": (28.7, 44.7, 7.0, 17.0, 11.2, 11.0),
    "RPE": (18.4, 31.0, 11.5, 14.4, 12.6, 14.4),
    "HEPG2": (24.4, 39.3, 8.7, 17.1, 16.2, 15.5),
    "U2OS": (59.6, 44.5, 13.0, 20.0, 13.5, 24.5),
}
"""Grey levels of unit brightness, set so that channel means are those of RxRx1 at the default density."""
BACKGROUND_C = (1.2, 3.5, 4.0, 2.4, 1.2, 3.5)
"""Grey levels where there are no cells (medium, autofluorescence, camera offset)."""
_HAZE_C = (0.38, 0.12, 0.10, 0.25, 0.38, 0.25)
"""Share of the light that is out of focus and spreads over the whole field (wide-field optics); set so that the pixels'
standard deviations are those of RxRx1."""
_BLUR = 0.03
"""Optical blur, standard deviation in cell diameters."""
_SHOT_NOISE = 0.10
"""Variance of the noise per grey level."""
_READ_NOISE = 0.3
"""Standard deviation of the noise of a dark pixel, grey levels."""


def photograph(
    rng: np.random.Generator,
    stains_CHW: NDArray[np.float32],
    cell_type: str,
    effect: BatchEffect,
    diameter: float,
) -> NDArray[np.uint8]:
    """The six 8-bit images of a site, uint8 (C, H, W).

    The calibrated deviations are those of channel means, which density moves also: the gain is what density leaves.
    """
    size = stains_CHW.shape[-1]
    place = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    images = np.empty(stains_CHW.shape, dtype=np.uint8)
    noise_CHW = rng.standard_normal(stains_CHW.shape, dtype=np.float32)
    for c, stain_HW in enumerate(stains_CHW):
        sigma = diameter * _BLUR * float(np.exp(effect.log_blur_C[c]))
        light_HW = cv2.GaussianBlur(stain_HW, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        light_HW += np.float32(_HAZE_C[c]) * (light_HW.mean() - light_HW)
        down, right = effect.gradient_C2[c].astype(np.float32)
        illumination_HW = 1.0 + down * place[:, None] + right * place[None, :]
        gain = float(np.exp(effect.log_gain_C[c]))
        level = CHANNEL_LEVELS_C[cell_type][c] * float(np.exp(-effect.log_density))
        background = BACKGROUND_C[c] * float(np.exp(effect.log_offset_C[c]))
        grey_HW = np.float32(gain) * (np.float32(level) * light_HW * illumination_HW + np.float32(background))
        grey_HW += noise_CHW[c] * np.sqrt(np.float32(_SHOT_NOISE) * grey_HW + np.float32(_READ_NOISE**2))
        images[c] = np.clip(np.rint(grey_HW), 0, 255).astype(np.uint8)
    return images
