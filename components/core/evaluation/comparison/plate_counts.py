"""How many wells of each plate both models name right: all that the bootstrap needs to know. Pure NumPy.

P plates of a cell type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.evaluation.comparison.compared_well import ComparedStage, ComparedWell


@dataclass(frozen=True)
class PlateCounts:
    """The plates of one cell type; all arrays are of shape (P,), int64.

    Attributes:
        wells_P: wells, at least 1.
        champion_P: wells that the champion names right.
        challenger_P: wells that the challenger names right.
    """

    wells_P: NDArray[np.int64]
    champion_P: NDArray[np.int64]
    challenger_P: NDArray[np.int64]

    @property
    def plates(self) -> int:
        """P."""
        return len(self.wells_P)


def count_plates(wells: Iterable[ComparedWell], stage: ComparedStage) -> PlateCounts:
    """Counts by plate.

    Args:
        wells: of one cell type.
        stage: whose names count.
    """
    counts: dict[tuple[str, int], list[int]] = {}
    for well in wells:
        plate = counts.setdefault((well.experiment, well.plate), [0, 0, 0])
        plate[0] += 1
        plate[1] += well.champion.at(stage) == well.truth
        plate[2] += well.challenger.at(stage) == well.truth
    return PlateCounts(*np.array(list(counts.values()), np.int64).reshape(-1, 3).T)
