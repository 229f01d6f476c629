"""How experiments and plates differ for reasons that are not biology: calibrated to RxRx1. Pure NumPy.

The channel means of RxRx1 differ between experiments of a cell type by factors, so gains are log-normal. Standard
deviations of log channel means between experiments and between the plates of one were measured on its 204 plates.
C channels, T traits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from components.core.screen.simulation.phenotypes import TRAITS
from components.core.screen.simulation.settings import stream

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
"""Standard deviation of the log gains between the plates of one experiment; their siRNAs and offsets add to it."""
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
"""Deviations are clipped here, as 8-bit images of a far gain would be black or white."""
# Irrational steps of the low-discrepancy sequences: golden section for what channels share, square roots for their own.
_STEPS = np.array([0.6180339887, *(np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0, 13.0]) % 1.0)])


@dataclass(frozen=True)
class BatchEffect:
    """The conditions under which a plate was grown, stained and imaged.

    Attributes:
        log_gain_C: natural-log factor of the channel means.
        log_offset_C: natural-log factor of the background.
        log_blur_C: natural-log factor of the optical blur.
        gradient_C2: relative change of illumination from the centre to the lower and the right edge.
        log_density: natural-log factor of the area that cells cover.
        culture_T: phenotype shift of all cells.
    """

    log_gain_C: NDArray[np.float64]
    log_offset_C: NDArray[np.float64]
    log_blur_C: NDArray[np.float64]
    gradient_C2: NDArray[np.float64]
    log_density: float
    culture_T: NDArray[np.float64]


@lru_cache(maxsize=64)
def plate_effect(seed: int, cell_type: str, experiment: int, plate: int, strength: float) -> BatchEffect:
    """The batch effect of one plate: its experiment's and its own.

    Args:
        seed: the run's seed.
        cell_type: one of phenotypes.CELL_TYPES.
        experiment: number of the experiment within its cell type, from 1.
        plate: number of the plate, from 1.
        strength: factor of all deviations; 0 makes all plates alike.
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
