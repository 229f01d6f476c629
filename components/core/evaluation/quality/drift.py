"""How far a plate's grey levels are from those that the networks were trained on, judged by how far those are from each other.

P new plates, T training plates, E training experiments, C channels. Histograms are exact and add, so no image is read.
Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How far new plates are from the training plates of their cell type.

    Attributes:
        distance_PC: of each plate from all training plates together: Wasserstein-1 distance of the natural logarithm of grey
            level + 1. 0.1 is about what ten percent more light does.
        usual_C: the same distance of a training plate from those of the other experiments together, the median over plates;
            None where there is only one experiment.
        largest_C: likewise the largest.
    """

    distance_PC: Floats
    usual_C: Floats | None
    largest_C: Floats | None

    @property
    def beyond(self) -> NDArray[np.bool_]:
        """Whether a plate is farther away than any training plate is from the other experiments."""
        if self.largest_C is None:
            return np.zeros(self.distance_PC.shape, np.bool_)
        return np.asarray(self.distance_PC > self.largest_C)


def drift(new_PC256: NDArray[np.integer], training_TC256: NDArray[np.integer], experiment_T: Sequence[str]) -> Drift:
    """Distances of new plates from the training plates, and of those from each other.

    Args:
        new_PC256: pixels by grey level of each new plate, some in every channel.
        training_TC256: likewise of the training plates of the same cell type, at least one.
        experiment_T: their experiments.

    Raises:
        ValueError: no training plates.
    """
    if not len(training_TC256):
        raise ValueError("drift needs training plates to compare with")
    experiments_E, own_T = np.unique(np.array(experiment_T), return_inverse=True)
    of_experiment_EC = np.array([training_TC256[own_T == e].sum(axis=0) for e in range(len(experiments_E))])
    all_C = of_experiment_EC.sum(axis=0)
    distance_PC = log_distance(new_PC256, all_C)
    if len(experiments_E) == 1:
        return Drift(distance_PC, None, None)
    # Plate by plate, as new ones are judged: the plates of an experiment together lie nearer to the rest than each of them. And
    # without its own experiment, as a new plate's is not among them.
    apart_TC = log_distance(training_TC256, all_C - of_experiment_EC[own_T])
    return Drift(distance_PC, np.median(apart_TC, axis=0), apart_TC.max(axis=0))


def log_distance(one: NDArray[np.integer], other: NDArray[np.integer]) -> Floats:
    """Wasserstein-1 distance between two distributions of the natural logarithm of grey level + 1.

    In one dimension it is the area between the cumulative distributions (Vallender 1974, doi:10.1137/1118101). The
    logarithm makes it one of illumination and stain, which multiply.

    Args:
        one: pixels by grey level, shape (..., 256), some in every row.
        other: likewise; shapes are broadcast.
    """
    width_255 = np.diff(np.log1p(np.arange(one.shape[-1])))
    apart = np.abs(_cumulative(one) - _cumulative(other))[..., :-1]
    return np.asarray((apart * width_255).sum(axis=-1), np.float64)


def _cumulative(counts: NDArray[np.integer]) -> Floats:
    summed = np.cumsum(counts, axis=-1, dtype=np.float64)
    return np.asarray(summed / summed[..., -1:], np.float64)
