"""What a plate's pixels look like before and after standardisation, exactly, from its histograms. Pure NumPy.

P plates, C channels. A histogram of 256 counts a plate and channel is exact for 8-bit pixels and adds over plates, so
that the statistics of any domain, and a plate's statistics under it, need no image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.config import Domain
from components.core.storage.manifest import PlateRecord

Floats = NDArray[np.float64]
QUANTILES = (0.05, 0.95)


@dataclass(frozen=True)
class PlateStatistics:
    """Per plate and channel, before (grey levels 0-255) and after standardisation (units of the domain's deviation)."""

    plates: tuple[PlateRecord, ...]
    mean_PC: Floats
    low_PC: Floats
    """5th percentile of the pixels"""
    high_PC: Floats
    """95th percentile"""
    after_mean_PC: Floats
    after_low_PC: Floats
    after_high_PC: Floats


def plate_statistics(plates: Sequence[PlateRecord], domain: Domain) -> PlateStatistics:
    """Statistics of every plate under x' = (x - mean[d, c]) / std[d, c].

    Args:
        plates: at least one, each with a count in every channel.
        domain: whose mean and deviation standardise; `none` is x / 255.

    Raises:
        ValueError: no plates, or a channel without pixels.
    """
    if not plates:
        raise ValueError("statistics of no plates are not defined")
    counts_PCV = np.array([plate.histograms for plate in plates], np.float64)
    if not counts_PCV.sum(axis=2).all():
        raise ValueError("a plate has a channel without pixels")
    mean_PC, _ = moments(counts_PCV)
    low_PC, high_PC = (quantile(counts_PCV, q) for q in QUANTILES)
    if domain == "none":
        shift_PC, scale_PC = np.zeros_like(mean_PC), np.full_like(mean_PC, 255.0)
    else:
        names = [_domain_of(plate, domain) for plate in plates]
        shift_PC, scale_PC = np.empty_like(mean_PC), np.empty_like(mean_PC)
        for name in set(names):
            members = np.array([other == name for other in names])
            domain_mean_C, domain_std_C = moments(counts_PCV[members].sum(axis=0))
            shift_PC[members] = domain_mean_C
            scale_PC[members] = np.maximum(domain_std_C, 1e-6)  # an all-black channel stays at zero
    after = [(values_PC - shift_PC) / scale_PC for values_PC in (mean_PC, low_PC, high_PC)]
    return PlateStatistics(tuple(plates), mean_PC, low_PC, high_PC, *after)


def moments(counts: Floats) -> tuple[Floats, Floats]:
    """Mean and population deviation of grey levels from counts, shape (..., 256)."""
    levels = np.arange(counts.shape[-1])
    total = counts.sum(axis=-1)
    mean: Floats = (counts * levels).sum(axis=-1) / total
    square: Floats = (counts * levels**2).sum(axis=-1) / total
    std: Floats = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean, std


def quantile(counts: Floats, q: float) -> Floats:
    """The smallest grey level at or below which a fraction q of the pixels lies; counts (..., 256)."""
    cumulative = counts.cumsum(axis=-1)
    reached: NDArray[np.bool_] = cumulative >= q * cumulative[..., -1:]
    return np.asarray(reached.argmax(axis=-1), np.float64)


@dataclass(frozen=True)
class BatchEffect:
    """How far channel means differ, as the standard deviation of their natural logarithm."""

    cell_type: str
    experiments: int
    between_experiments_C: tuple[float, ...] | None
    """None with fewer than two experiments"""
    between_plates_C: tuple[float, ...] | None
    """within an experiment, pooled; None where no experiment has two plates"""


def batch_effects(statistics: PlateStatistics, cell_types: Sequence[str]) -> list[BatchEffect]:
    """The spread of raw channel means between experiments and between the plates of one, by cell type."""
    log_PC = np.log(np.maximum(statistics.mean_PC, 1e-6))
    found = []
    for name in cell_types:
        experiments: dict[str, list[int]] = {}
        for p, plate in enumerate(statistics.plates):
            if plate.cell_type == name:
                experiments.setdefault(plate.experiment, []).append(p)
        if not experiments:
            continue
        means_EC = np.array([log_PC[members].mean(axis=0) for members in experiments.values()])
        repeated = [members for members in experiments.values() if len(members) > 1]
        squares_C = sum(
            (((log_PC[m] - log_PC[m].mean(axis=0)) ** 2).sum(axis=0) for m in repeated), np.zeros(log_PC.shape[1])
        )
        freedom = sum(len(m) - 1 for m in repeated)
        found.append(
            BatchEffect(
                cell_type=name,
                experiments=len(experiments),
                between_experiments_C=tuple(means_EC.std(axis=0, ddof=1)) if len(experiments) > 1 else None,
                between_plates_C=tuple(np.sqrt(squares_C / freedom)) if freedom else None,
            )
        )
    return found


def _domain_of(plate: PlateRecord, domain: Domain) -> str:
    return {
        "global": "",
        "cell_type": plate.cell_type,
        "experiment": plate.experiment,
        "plate": f"{plate.experiment}/{plate.plate}",
    }[domain]
