"""Paired bootstrap over plates: how far the difference between two models may be off. Pure NumPy.

P plates of a cell type, R resamples. Wells of a plate share its batch effect, and assignment names them together, so plates are
drawn and never wells, with all their wells and for both models at once. Cell types are strata: each keeps its number of plates.

What it cannot tell: plates of one experiment share a batch effect and an arrangement of plate groups, too, and few experiments
are held out, so that they are not drawn. The interval is of other plates of these experiments, not of another experiment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from components.core.evaluation.comparison.plate_counts import PlateCounts


@dataclass(frozen=True)
class Resampled:
    """Resamples of a cell type's plates.

    Attributes:
        gained_R: wells that the challenger names right less those that the champion does, shape (R,), int64.
        wells_R: wells drawn, shape (R,), int64; as plates miss wells, not all resamples have as many.
        plates: P.
    """

    gained_R: NDArray[np.int64]
    wells_R: NDArray[np.int64]
    plates: int


@dataclass(frozen=True)
class Interval:
    """Of the difference in well top-1, challenger less champion; each end is a one-sided bound of the confidence asked for.

    Attributes:
        at_least_as_good: share of resamples in which the challenger is not worse.
    """

    low: float
    high: float
    at_least_as_good: float


def resample(counts: PlateCounts, name: str, resamples: int, seed: int) -> Resampled:
    """Draws P of a cell type's P plates with replacement, R times.

    Every half of the draws is dealt to the plates in one of two orders, both by what the plates hold: ascending by the
    champion's count, then by the challenger's, and the other way round. So neither the names nor the order of the plates
    decide anything, and with champion and challenger exchanged the resamples are the same ones with the opposite sign.

    Args:
        counts: its plates.
        name: the cell type, from which the draws are seeded, so that they do not depend on which others there are.
        resamples: R, an even number.
        seed: of all draws.
    """
    assert resamples % 2 == 0
    plates = counts.plates
    rng = np.random.default_rng([seed, *name.encode()])
    times_RP = rng.multinomial(plates, np.full(plates, 1 / plates), size=resamples // 2)
    gained_P = counts.challenger_P - counts.champion_P
    orders = [
        np.lexsort((counts.challenger_P, counts.champion_P, counts.wells_P)),
        np.lexsort((counts.champion_P, counts.challenger_P, counts.wells_P)),
    ]
    return Resampled(
        np.concatenate([times_RP @ gained_P[order] for order in orders]),
        np.concatenate([times_RP @ counts.wells_P[order] for order in orders]),
        plates,
    )


def interval(cell_types: Sequence[Resampled], confidence: float) -> Interval:
    """The interval of the difference over the wells of all given cell types.

    With few plates, percentiles are too narrow twice: P plates resampled vary (P - 1)/P as much as they should, and their
    deviation is itself estimated. So farther percentiles are taken: those at which a normal variable exceeds t sqrt(P / (P - S)),
    S cell types, t of P - S degrees of freedom (Hesterberg 2015, doi:10.1080/00031305.2015.1089789, expanded percentiles, here
    for strata). The bounds are resamples themselves, the farther out where a percentile lies between two.

    Args:
        cell_types: at least one, each of at least two plates.
        confidence: one-sided, of either end.
    """
    difference_R = np.sort(sum(part.gained_R for part in cell_types) / sum(part.wells_R for part in cell_types))
    plates, strata = sum(part.plates for part in cell_types), len(cell_types)
    outside = int(tail(confidence, plates, strata) * (len(difference_R) - 1))
    return Interval(
        low=float(difference_R[outside]),
        high=float(difference_R[-1 - outside]),
        at_least_as_good=float(np.mean(difference_R >= 0)),
    )


def tail(confidence: float, plates: int, strata: int) -> float:
    """The share of resamples beyond a one-sided bound.

    Args:
        confidence: of the bound, above 0.5.
        plates: of all strata.
        strata: cell types, fewer than plates.
    """
    free = plates - strata
    return float(ndtr(-stdtrit(free, confidence) * math.sqrt(plates / free)))
