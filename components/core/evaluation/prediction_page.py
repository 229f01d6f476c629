"""The report of new plates: what to trust, and what to look at. The words are in prediction_page.html.j2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from components.core.config import RunConfig
from components.core.evaluation.page import Notice, count_wells, plate_maps, render_page
from components.core.evaluation.plate_quality import BLURRED_PLATE, PlateQuality
from components.core.evaluation.plate_statistics import channel_names
from components.core.evaluation.predictions import UNSURE
from components.core.evaluation.quality import LIMIT
from components.core.evaluation.scores import score_table
from components.core.storage.manifest import Manifest

SHOWN_WELLS = 200
"""Rows of the table of wells to look at; qc.csv has all."""


@dataclass(frozen=True)
class Prediction:
    """All that the page shows."""

    config: RunConfig
    plates: Manifest
    reference: Manifest
    predictions: pd.DataFrame
    """see evaluation.predictions"""
    arrangements: Sequence[Mapping[str, Any]]
    """experiments of assign.json, each with its cell_type"""
    prior_used: bool
    quality: Sequence[PlateQuality]
    reasons: Mapping[str, Sequence[str]]
    """to look at a well, by id_code"""
    notices: Sequence[Notice]
    lineage: Mapping[str, Any]


def render(prediction: Prediction) -> str:
    """The whole page as HTML."""
    plates = prediction.plates.plates
    cell_types = list(dict.fromkeys(plate.cell_type for plate in plates))
    predicted = {str(row.id_code): row for row in prediction.predictions.itertuples(index=False)}
    marked = [
        (well, prediction.reasons[well.id_code], predicted.get(well.id_code))
        for plate in plates
        for well in plate.wells
        if prediction.reasons[well.id_code]
    ]
    return render_page(
        "prediction_page.html.j2",
        prediction.config,
        prediction.plates,
        prediction.lineage,
        prediction=prediction,
        model=prediction.reference.model,
        cell_types=cell_types,
        counts=count_wells(plates),
        classified=len(predicted),
        unsure=int((prediction.predictions["confidence"] < UNSURE).sum()),
        table=score_table(prediction.predictions, cell_types),
        roles={"holdout": "new plates"},
        maps=plate_maps(
            plates, prediction.predictions, prediction.arrangements, {}, {well.id_code for well, _, _ in marked}
        ),
        rows=[_row(each, channel_names(prediction.plates.channels)) for each in prediction.quality],
        drifting=[each for each in prediction.quality if any(each.beyond_C)],
        blurred_plates=sum(each.blurred for each in prediction.quality),
        marked=marked[:SHOWN_WELLS],
        more_marked=max(0, len(marked) - SHOWN_WELLS),
        limit=LIMIT,
        blurred=BLURRED_PLATE,
    )


def _row(each: PlateQuality, channels: Sequence[str]) -> dict[str, Any]:
    """One plate: the worst channel of each measure, with its name."""
    sharp = [(value, c) for c, value in enumerate(each.sharpness_C) if not math.isnan(value)]
    sharpness = min(sharp, default=None)
    saturated = max((value, c) for c, value in enumerate(each.saturated_C))
    usual_C = each.usual_C
    return {
        "quality": each,
        "sharpness": (sharpness[0], channels[sharpness[1]]) if sharpness else None,
        "saturated": (saturated[0], channels[saturated[1]]),
        "drifts": [
            {
                "value": value,
                # How many times as far as a training plate usually is; None if there is nothing to compare with.
                "times": (value / usual_C[c] if usual_C[c] else value) if usual_C else None,
                "beyond": bool(each.beyond_C[c]),
            }
            for c, value in enumerate(each.drift_C or ())
        ],
    }
