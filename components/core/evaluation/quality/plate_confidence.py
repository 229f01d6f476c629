"""How sure the names on each plate are. Pure; confidences are calibrated by the model's own screen, not by these plates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from components.core.evaluation.named_wells import NamedWell

UNSURE = 0.6
"""Below it a name is called unsure, and a well's colour on the plate maps is a warm one."""


@dataclass(frozen=True)
class PlateConfidence:
    """One plate's treatment wells.

    Attributes:
        wells: how many.
        median: of their confidences.
        raw_median: of the confidences without the prior.
        unsure: share below UNSURE.
    """

    experiment: str
    plate: int
    wells: int
    median: float
    raw_median: float
    unsure: float


def confidence_by_plate(wells: Iterable[NamedWell]) -> list[PlateConfidence]:
    """One entry a plate that has named wells, by experiment and number."""
    plates: dict[tuple[str, int], list[NamedWell]] = {}
    for well in wells:
        plates.setdefault((well.experiment, well.plate), []).append(well)
    return [
        PlateConfidence(
            experiment,
            plate,
            len(members),
            float(np.median([well.confidence for well in members])),
            float(np.median([well.raw_confidence for well in members])),
            float(np.mean([well.confidence < UNSURE for well in members])),
        )
        for (experiment, plate), members in sorted(plates.items())
    ]
