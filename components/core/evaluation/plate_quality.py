"""Quality control of new plates, plate by plate: sharpness, drift from the training plates, confidence. Pure.

P new plates, T training plates, E training experiments, C channels, G grey levels. Histograms are exact and add, so drift reads no
image.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from components.core.evaluation.quality import columns
from components.core.evaluation.scores import UNSURE
from components.core.storage.manifest import PlateRecord

Floats = NDArray[np.float64]
BLURRED_PLATE = 0.6
"""Sharpness of a channel, relative to the other plates, below which a plate counts as blurred."""


def plate_quality(
    plates: Sequence[PlateRecord],
    training: Sequence[PlateRecord],
    wells: pd.DataFrame,
    predictions: pd.DataFrame,
    channels: Sequence[str],
) -> pd.DataFrame:
    """Quality of new plates.

    Args:
        plates: the new plates, each with wells.
        training: the model's training plates.
        wells: a row a well: experiment, plate, look_at, and the columns of `quality.well_quality`.
        predictions: a predictions table of the plates' treatment wells.
        channels: names of the channels.

    Returns:
        A row a plate, in order: experiment, plate, cell_type; wells and look_at, numbers of wells and of those to look at;
        nuclei_share, median over wells, if they have it; confidence, raw_confidence and unsure, of its predicted wells the
        medians with and without the prior and the fraction below UNSURE; blurred, whether a channel's sharpness is below
        BLURRED_PLATE. By channel: sharpness_*, the median focus of the wells over its median over these plates of the cell
        type, NaN for a constant channel and a single plate; saturated_*, the mean over wells; drift_*, times_*, beyond_*, see
        `Drift`, NaN and False if the model has no plates of the cell type.
    """
    key = ["experiment", "plate"]
    table = pd.DataFrame([{name: getattr(plate, name) for name in (*key, "cell_type")} for plate in plates])
    focus, saturated = columns("focus", channels), columns("saturated", channels)
    by_plate = wells.assign(look_at=wells["look_at"] != "").groupby(key, sort=False)
    measured = by_plate.agg(wells=("plate", "size"), look_at=("look_at", "sum"))
    if "nuclei_share" in wells:
        measured = measured.join(by_plate["nuclei_share"].median())
    measured = measured.join(by_plate[saturated].mean()).join(by_plate[focus].median())
    predicted = predictions.assign(unsure=predictions["confidence"] < UNSURE).groupby(key)
    medians = predicted[["confidence", "raw_confidence"]].median().join(predicted["unsure"].mean())
    table = table.join(measured, on=key).join(medians, on=key)
    by_type = table.groupby("cell_type")
    sharpness = (table[focus] / by_type[focus].transform("median")).set_axis(columns("sharpness", channels), axis=1)
    sharpness[by_type["plate"].transform("size") == 1] = np.nan
    table = table.drop(columns=focus).join(sharpness).assign(blurred=(sharpness < BLURRED_PLATE).any(axis=1))
    return table.join(_drift_table(plates, training, channels))


def _drift_table(
    plates: Sequence[PlateRecord], training: Sequence[PlateRecord], channels: Sequence[str]
) -> pd.DataFrame:
    """The columns drift_*, times_* and beyond_* of `plate_quality`."""
    distance_PC = np.full((len(plates), len(channels)), np.nan)
    times_PC, beyond_PC = distance_PC.copy(), np.zeros(distance_PC.shape, np.bool_)
    for cell_type in {plate.cell_type for plate in training}:
        own = [p for p, plate in enumerate(plates) if plate.cell_type == cell_type]
        known = [plate for plate in training if plate.cell_type == cell_type]
        if own:
            found = drift(
                [plates[p].histograms for p in own],
                [plate.histograms for plate in known],
                [plate.experiment for plate in known],
            )
            distance_PC[own], times_PC[own], beyond_PC[own] = found
    parts = {"drift": distance_PC, "times": times_PC, "beyond": beyond_PC}
    return pd.concat([pd.DataFrame(part, columns=columns(name, channels)) for name, part in parts.items()], axis=1)


class Drift(NamedTuple):
    """How far new plates are from the training plates of their cell type."""

    distance_PC: Floats  # to all training plates together, see `log_distance`; ten percent more light makes about 0.1
    times_PC: Floats
    """as a multiple of the usual distance, from a training plate to the other experiments together (median over training
    plates); NaN if there is only one training experiment, or the usual distance is 0"""
    beyond_PC: NDArray[np.bool_]  # whether it is larger than any such distance


def drift(new_PCG: Collection[ArrayLike], training_TCG: Collection[ArrayLike], experiment_T: Sequence[str]) -> Drift:
    """Compares the histograms of new plates with those of training plates of the same cell type, at least one.

    They are used one after the other, because counts of a 16-bit plate take megabytes.
    """
    of_experiment: dict[str, NDArray[np.int64]] = {}
    for counts, experiment in zip(training_TCG, experiment_T, strict=True):
        counts_CG = np.asarray(counts, np.int64)
        of_experiment[experiment] = of_experiment[experiment] + counts_CG if experiment in of_experiment else counts_CG
    all_CG = np.sum([*of_experiment.values()], axis=0)
    distance_PC = np.array([log_distance(np.asarray(counts), all_CG) for counts in new_PCG])
    if len(of_experiment) == 1:
        return Drift(distance_PC, np.full_like(distance_PC, np.nan), np.zeros(distance_PC.shape, np.bool_))
    # Plate by plate, as new plates are compared: the sum of an experiment's plates is closer to the rest than each of them.
    # Without its own experiment, because a new plate's experiment is not among the training plates either.
    known = zip(training_TCG, experiment_T, strict=True)
    apart_TC = np.array([log_distance(np.asarray(counts), all_CG - of_experiment[own]) for counts, own in known])
    usual_C = np.median(apart_TC, axis=0)
    times_PC = distance_PC / np.where(usual_C > 0, usual_C, np.nan)
    return Drift(distance_PC, times_PC, distance_PC > apart_TC.max(axis=0))


def log_distance(one: NDArray[np.integer], other: NDArray[np.integer]) -> Floats:
    """Wasserstein-1 distance between two distributions of the natural logarithm of grey level + 1.

    In one dimension it is the area between the cumulative distributions (Vallender 1974, doi:10.1137/1118101). The
    logarithm suits illumination and stain, which multiply. Counts of shape (..., G) are broadcast.
    """
    width_255 = np.diff(np.log1p(np.arange(one.shape[-1])))
    apart = np.abs(_cumulative(one) - _cumulative(other))[..., :-1]
    return np.asarray((apart * width_255).sum(axis=-1), np.float64)


def _cumulative(counts: NDArray[np.integer]) -> Floats:
    summed = np.cumsum(counts, axis=-1, dtype=np.float64)
    return np.asarray(summed / summed[..., -1:], np.float64)
