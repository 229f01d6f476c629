"""Quality control of new plates, plate by plate: sharpness, drift from the training plates, confidence. Pure.

P new plates, T training plates, E training experiments, C channels. Histograms are exact and add, so drift reads no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.core.evaluation.predictions import UNSURE
from components.core.evaluation.quality import WellQuality
from components.core.storage.manifest import PlateRecord

Floats = NDArray[np.float64]
BLURRED_PLATE = 0.6
"""Sharpness of a channel, relative to the other plates, below which a plate is called blurred."""


@dataclass(frozen=True)
class Drift:
    """How far new plates are from the training plates of their cell type.

    Attributes:
        distance_PC: from each plate to all training plates together: Wasserstein-1 distance of the natural logarithm of
            grey level + 1. Ten percent more light make about 0.1.
        usual_C: the same distance from a training plate to those of the other experiments together, the median over
            plates; None if there is only one experiment.
        largest_C: the largest such distance.
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
    """Distances from new plates to the training plates, and between those.

    Args:
        new_PC256: pixels by grey level of each new plate, some in every channel.
        training_TC256: the same of the training plates of the same cell type, at least one.
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
    # Plate by plate, as new ones are judged: the plates of an experiment together lie nearer to the rest than each of
    # them. And without its own experiment, because a new plate's is not among them.
    apart_TC = log_distance(training_TC256, all_C - of_experiment_EC[own_T])
    return Drift(distance_PC, np.median(apart_TC, axis=0), apart_TC.max(axis=0))


def log_distance(one: NDArray[np.integer], other: NDArray[np.integer]) -> Floats:
    """Wasserstein-1 distance between two distributions of the natural logarithm of grey level + 1.

    In one dimension it is the area between the cumulative distributions (Vallender 1974, doi:10.1137/1118101). The
    logarithm suits illumination and stain, which multiply. Counts of shape (..., 256) are broadcast.
    """
    width_255 = np.diff(np.log1p(np.arange(one.shape[-1])))
    apart = np.abs(_cumulative(one) - _cumulative(other))[..., :-1]
    return np.asarray((apart * width_255).sum(axis=-1), np.float64)


def _cumulative(counts: NDArray[np.integer]) -> Floats:
    summed = np.cumsum(counts, axis=-1, dtype=np.float64)
    return np.asarray(summed / summed[..., -1:], np.float64)


@dataclass(frozen=True)
class PlateQuality:
    """One plate.

    Attributes:
        plate: its record.
        sharpness_C: median focus of its wells over the median of that over the screen's plates of the cell type; 1 is
            usual. NaN for a constant channel, and for a plate that is alone of its cell type.
        saturated_C: mean over wells of the saturated fraction.
        nuclei: median over wells of the fraction of pixels that are nuclei.
        drift_C: distance from its grey levels to the training plates', see Drift; None if the model has none of its cell
            type.
        usual_C: that of a training plate; None if there is nothing to compare with.
        beyond_C: whether it is farther away than any training plate is from the other experiments.
        confidence: `median`, `raw_median` and the fraction `unsure` of its predicted wells; None if it has none.
        wells_to_look_at: how many there are.
    """

    plate: PlateRecord
    sharpness_C: tuple[float, ...]
    saturated_C: tuple[float, ...]
    nuclei: float
    drift_C: tuple[float, ...] | None
    usual_C: tuple[float, ...] | None
    beyond_C: tuple[bool, ...]
    confidence: Mapping[str, float] | None
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
    predictions: pd.DataFrame,
) -> list[PlateQuality]:
    """All plates of a screen, in their order.

    Args:
        plates: each with wells.
        wells: by id_code, all of them.
        reasons: to look at a well, by id_code.
        drifts: by cell type, with its plates in their order; None if the model has no plates of it.
        predictions: a predictions table of their treatment wells.
    """
    focus_PC = np.array([_median([wells[well.id_code].focus_C for well in plate.wells]) for plate in plates])
    confidence = confidence_by_plate(predictions)
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
                confidence=confidence.get((plate.experiment, plate.plate)),
                wells_to_look_at=sum(bool(reasons[well.id_code]) for well in plate.wells),
            )
        )
    return found


def confidence_by_plate(predictions: pd.DataFrame) -> dict[tuple[str, int], dict[str, float]]:
    """By experiment and plate: the `median` confidence, the `raw_median` without the prior, the fraction `unsure`."""
    by_plate = predictions.assign(unsure=predictions["confidence"] < UNSURE).groupby(["experiment", "plate"])
    table = by_plate.agg(
        median=("confidence", "median"), raw_median=("raw_confidence", "median"), unsure=("unsure", "mean")
    )
    return {(experiment, int(plate)): row.to_dict() for (experiment, plate), row in _rows(table)}


def _rows(table: pd.DataFrame) -> Any:
    return table.iterrows()


def _median(rows: Sequence[Floats]) -> Floats:
    """By column, over the rows that know it; NaN if none does."""
    values = np.array(rows)
    known = ~np.isnan(values).all(axis=0)
    median = np.full(values.shape[1], np.nan)
    median[known] = np.nanmedian(values[:, known], axis=0)
    return median
