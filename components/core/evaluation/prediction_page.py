"""The report of predicted plates as one self-contained HTML page: what to trust, and what to look at. Data in, text out.

The words and the layout are in prediction_page.html.j2; here is what the page says of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.core.config import RunConfig
from components.core.evaluation.named_wells import NamedWell
from components.core.evaluation.quality.plate_confidence import UNSURE
from components.core.evaluation.quality.plate_quality import BLURRED_PLATE, PlateQuality
from components.core.evaluation.quality.wells_to_look_at import LIMIT
from components.core.evaluation.report_page import (
    STAGE_EXPLANATIONS,
    Notice,
    channel_names,
    durations,
    map_legend,
    page_environment,
    plate_maps,
)
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
    wells: Sequence[NamedWell]
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
    named = {well.id_code: well for well in prediction.wells}
    plates = prediction.plates.plates
    cell_types = list(dict.fromkeys(plate.cell_type for plate in plates))
    channels = channel_names(prediction.plates.channels)
    marked = [
        (plate, well, prediction.reasons[well.id_code], named.get(well.id_code))
        for plate in plates
        for well in plate.wells
        if prediction.reasons[well.id_code]
    ]
    return (
        page_environment()
        .get_template("prediction_page.html.j2")
        .render(
            prediction=prediction,
            model=prediction.reference.model,
            cell_types=cell_types,
            counts={
                "experiments": len({plate.experiment for plate in plates}),
                "plates": len(plates),
                "wells": sum(len(plate.wells) for plate in plates),
                "sites": sum(len(well.sites) for plate in plates for well in plate.wells),
            },
            unsure_below=UNSURE,
            unsure=sum(well.confidence < UNSURE for well in prediction.wells),
            table=score_table(prediction.wells, cell_types),
            stage_words=STAGE_EXPLANATIONS,
            maps=plate_maps(
                [("holdout", plate) for plate in plates],
                named,
                prediction.arrangements,
                {well.id_code for _, well, _, _ in marked},
            ),
            map_legend=map_legend(),
            channels=channels,
            rows=[_row(each, channels) for each in prediction.quality],
            drifting=[each for each in prediction.quality if any(each.beyond_C)],
            blurred_plates=sum(each.blurred for each in prediction.quality),
            marked=marked[:SHOWN_WELLS],
            more_marked=max(0, len(marked) - SHOWN_WELLS),
            limit=LIMIT,
            blurred=BLURRED_PLATE,
            durations=durations(prediction.lineage),
            config_yaml=prediction.config.dump(),
            groups=lambda numbers: [chr(ord("A") + g) if g < 26 else str(g) for g in numbers],
        )
    )


def _row(each: PlateQuality, channels: Sequence[str]) -> dict[str, Any]:
    """One plate: the worst channel of each measure, with its name."""
    sharp = [(value, c) for c, value in enumerate(each.sharpness_C) if not math.isnan(value)]
    sharpness = min(sharp, default=None)
    saturated = max((value, c) for c, value in enumerate(each.saturated_C))
    # How many times as far as a training plate usually is; on its own where there is nothing to compare with.
    far = [
        (value / each.usual_C[c] if each.usual_C and each.usual_C[c] else value, c)
        for c, value in enumerate(each.drift_C or ())
    ]
    return {
        "quality": each,
        "sharpness": (sharpness[0], channels[sharpness[1]]) if sharpness else None,
        "saturated": (saturated[0], channels[saturated[1]]),
        "drifts": [
            {"value": value, "times": far[c][0] if each.usual_C else None, "beyond": bool(each.beyond_C[c])}
            for c, value in enumerate(each.drift_C or ())
        ],
    }
