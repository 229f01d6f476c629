"""One line a plate of all that quality control found, for the report. Pure NumPy.

C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.core.evaluation.quality.drift import Drift
from components.core.evaluation.quality.plate_confidence import PlateConfidence
from components.core.evaluation.quality.wells_to_look_at import WellQuality
from components.core.storage.manifest import PlateRecord

BLURRED_PLATE = 0.6
"""Sharpness of a channel, relative to the other plates, below which a plate is called blurred."""


@dataclass(frozen=True)
class PlateQuality:
    """One plate.

    Attributes:
        plate: its record.
        sharpness_C: median focus of its wells, over the median of that over the screen's plates of the cell type; 1 is
            usual. A channel that is constant has NaN, and so have all of a plate that is alone of its cell type.
        saturated_C: mean over wells of the share of saturated pixels.
        nuclei: median over wells of the share of pixels that are nuclei.
        drift_C: distance of its grey levels from the training plates', see drift.
        usual_C: that of a training plate; None where there is nothing to compare with.
        beyond_C: whether it is farther away than any training plate is from the other experiments.
        confidence: None where it has no named wells.
        wells_to_look_at: how many there are.
    """

    plate: PlateRecord
    sharpness_C: tuple[float, ...]
    saturated_C: tuple[float, ...]
    nuclei: float
    drift_C: tuple[float, ...] | None
    usual_C: tuple[float, ...] | None
    beyond_C: tuple[bool, ...]
    confidence: PlateConfidence | None
    wells_to_look_at: int

    @property
    def blurred(self) -> bool:
        """Whether it is much less sharp than the other plates in some channel."""
        return any(value < BLURRED_PLATE for value in self.sharpness_C)


def plate_quality(
    plates: Sequence[PlateRecord],
    wells: Mapping[str, WellQuality],
    reasons: Mapping[str, Sequence[str]],
    drifts: Mapping[str, Drift | None],
    confidences: Sequence[PlateConfidence],
) -> list[PlateQuality]:
    """All plates of a screen, in their order.

    Args:
        plates: with wells.
        wells: by id_code, all of them.
        reasons: to look at a well, by id_code.
        drifts: by cell type, of its plates in their order; None where the model has no plates of it.
        confidences: of the plates that have named wells.
    """
    focus_PC = np.array([_median([wells[well.id_code].focus_C for well in plate.wells]) for plate in plates])
    confidence_of = {(each.experiment, each.plate): each for each in confidences}
    found, place = [], dict.fromkeys(drifts, 0)
    for p, plate in enumerate(plates):
        alike = [q for q, other in enumerate(plates) if other.cell_type == plate.cell_type]
        usual_C = _median(list(focus_PC[alike])) if len(alike) > 1 else np.full(focus_PC.shape[1], np.nan)
        members = [wells[well.id_code] for well in plate.wells]
        drift, n = drifts[plate.cell_type], place[plate.cell_type]
        place[plate.cell_type] += 1
        found.append(
            PlateQuality(
                plate=plate,
                sharpness_C=tuple((focus_PC[p] / usual_C).tolist()),
                saturated_C=tuple(np.mean([well.saturated_C for well in members], axis=0).tolist()),
                nuclei=float(np.median([well.nuclei for well in members])),
                drift_C=tuple(drift.distance_PC[n].tolist()) if drift else None,
                usual_C=tuple(drift.usual_C.tolist()) if drift and drift.usual_C is not None else None,
                beyond_C=tuple(drift.beyond[n].tolist()) if drift else (),
                confidence=confidence_of.get((plate.experiment, plate.plate)),
                wells_to_look_at=sum(bool(reasons[well.id_code]) for well in plate.wells),
            )
        )
    return found


def _median(rows: Sequence[np.ndarray]) -> np.ndarray:
    """By column, of the rows that know it; NaN where none does."""
    values = np.array(rows)
    known = ~np.isnan(values).all(axis=0)
    median = np.full(values.shape[1], np.nan)
    median[known] = np.nanmedian(values[:, known], axis=0)
    return median
