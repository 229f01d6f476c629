"""Batch effects of experiments and plates, calibrated to RxRx1, and the camera that applies them. NumPy and OpenCV.

The channel means of RxRx1 differ between experiments of a cell type by factors, so gains are log-normal. The standard
deviations of log channel means, between experiments and between the plates of one, were measured on its 204 plates.
C channels, T traits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.cells import TRAITS
from components.core.screen.simulation.plate_design import stream

EXPERIMENT_SPREAD_C = {
    "HUVEC": (0.27, 0.28, 0.21, 0.25, 0.33, 0.36),
    "RPE": (0.18, 0.21, 0.17, 0.13, 0.40, 0.27),
    "HEPG2": (0.88, 0.41, 0.60, 0.78, 0.92, 0.68),
    "U2OS": (0.39, 0.72, 0.40, 0.60, 0.95, 0.50),
}
"""Standard deviation of the log channel means between experiments."""
EXPERIMENT_CORRELATION = {"HUVEC": 0.2, "RPE": 0.1, "HEPG2": 0.9, "U2OS": 0.7}
"""Correlation of those deviations between channels."""
PLATE_SPREAD_C = (0.085, 0.07, 0.075, 0.045, 0.065, 0.05)
"""Standard deviation of the log gains between the plates of one experiment; their perturbations and offsets add to it."""
PLATE_CORRELATION = 0.5

_EXPERIMENT_DENSITY = 0.15
_PLATE_DENSITY = 0.04
_EXPERIMENT_BLUR = 0.20
_PLATE_BLUR = 0.06
_EXPERIMENT_CULTURE = 0.25
"""Deviation of an experiment's own phenotype shift, in trait units: passage, confluence, age of the culture."""
_EXPERIMENT_OFFSET = 0.30
_PLATE_OFFSET = 0.14
_GRADIENT = 0.12
_EXTREME = 1.8
"""Deviations are clipped here: 8-bit images with a larger gain would be black or white."""
# Irrational steps of the low-discrepancy sequences: golden section for what channels share, square roots for their own.
_STEPS = np.array([0.6180339887, *(np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0, 13.0]) % 1.0)])


@dataclass(frozen=True)
class BatchEffect:
    """The conditions under which a plate was grown, stained and imaged."""

    log_gain_C: NDArray[np.float64]  # natural-log factor of the channel means
    log_offset_C: NDArray[np.float64]  # natural-log factor of the background
    log_blur_C: NDArray[np.float64]  # natural-log factor of the optical blur
    gradient_C2: NDArray[np.float64]  # relative change of illumination from the centre to the lower and the right edge
    log_density: float  # natural-log factor of the area that cells cover
    culture_T: NDArray[np.float64]  # phenotype shift of all cells


@lru_cache(maxsize=64)
def plate_effect(seed: int, cell_type: str, experiment: int, plate: int, strength: float) -> BatchEffect:
    """The batch effect of one plate: its experiment's and its own. Experiments count within their cell type, from 1.

    `strength` is a factor of all deviations; 0 makes all plates alike.
    """
    of_experiment = stream(seed, "batch", cell_type, experiment)
    of_plate = stream(seed, "batch", cell_type, experiment, plate)
    channels = len(PLATE_SPREAD_C)
    log_gain_C = np.array(EXPERIMENT_SPREAD_C[cell_type]) * _experiment_deviation(seed, cell_type, experiment)
    common, own_C = of_plate.standard_normal(), of_plate.standard_normal(channels)
    log_gain_C += np.array(PLATE_SPREAD_C) * _correlated(common, own_C, PLATE_CORRELATION)

    def deviations(between_experiments: float, between_plates: float, *shape: int) -> NDArray[np.float64]:
        return np.asarray(
            between_experiments * of_experiment.standard_normal(shape)
            + between_plates * of_plate.standard_normal(shape)
        )

    return BatchEffect(
        log_gain_C=strength * log_gain_C,
        log_offset_C=strength * deviations(_EXPERIMENT_OFFSET, _PLATE_OFFSET, channels),
        log_blur_C=strength * deviations(_EXPERIMENT_BLUR, _PLATE_BLUR, channels),
        gradient_C2=strength * deviations(_GRADIENT, _GRADIENT / 3, channels, 2),
        log_density=strength * float(deviations(_EXPERIMENT_DENSITY, _PLATE_DENSITY)),
        culture_T=strength * deviations(_EXPERIMENT_CULTURE, _EXPERIMENT_CULTURE / 4, len(TRAITS)),
    )


def _experiment_deviation(seed: int, cell_type: str, experiment: int) -> NDArray[np.float64]:
    """Deviations of an experiment's log gains in units of their spread, (C,).

    Additive-recurrence sequences instead of independent draws: three or five experiments then already have the spread
    of many, and a further experiment leaves the earlier ones as they are.
    """
    phase = stream(seed, "gain phase", cell_type).random(len(_STEPS))
    uniform = (phase + experiment * _STEPS) % 1.0
    normal = np.array([NormalDist().inv_cdf(min(max(u, 1e-9), 1 - 1e-9)) for u in uniform]).clip(-_EXTREME, _EXTREME)
    return _correlated(normal[0], normal[1:], EXPERIMENT_CORRELATION[cell_type])


def _correlated(common: float, own_C: NDArray[np.float64], correlation: float) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(correlation) * common + np.sqrt(1.0 - correlation) * own_C)


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
    bits: int,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The images of a site, uint8 or uint16 (C, H, W); 16 bits show the same light in finer steps.

    The calibrated deviations are those of channel means, to which density contributes: its share is taken off the gain.

    Args:
        rng: generator of the site.
        stains_CHW: as `draw` returns them; channels beyond the six stains begin with the first again.
        cell_type: one of CELL_TYPES.
        effect: of the plate.
        diameter: typical cell diameter, pixels.
        bits: of a pixel, 8 or 16.
    """
    height, width = stains_CHW.shape[1:]
    down_H, right_W = (np.linspace(-1.0, 1.0, side, dtype=np.float32) for side in (height, width))
    white = 2**bits - 1
    images = np.empty(stains_CHW.shape, dtype=np.uint8 if bits == 8 else np.uint16)
    noise_CHW = rng.standard_normal(stains_CHW.shape, dtype=np.float32)
    for channel, stain_HW in enumerate(stains_CHW):
        c = channel % len(PLATE_SPREAD_C)
        sigma = diameter * _BLUR * float(np.exp(effect.log_blur_C[c]))
        light_HW = cv2.GaussianBlur(stain_HW, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        light_HW += np.float32(_HAZE_C[c]) * (light_HW.mean() - light_HW)
        down, right = effect.gradient_C2[c].astype(np.float32)
        illumination_HW = 1.0 + down * down_H[:, None] + right * right_W[None, :]
        gain = float(np.exp(effect.log_gain_C[c]))
        level = CHANNEL_LEVELS_C[cell_type][c] * float(np.exp(-effect.log_density))
        background = BACKGROUND_C[c] * float(np.exp(effect.log_offset_C[c]))
        grey_HW = np.float32(gain) * (np.float32(level) * light_HW * illumination_HW + np.float32(background))
        grey_HW += noise_CHW[channel] * np.sqrt(np.float32(_SHOT_NOISE) * grey_HW + np.float32(_READ_NOISE**2))
        images[channel] = np.clip(np.rint(grey_HW * np.float32(white / 255)), 0, white)
    return images
