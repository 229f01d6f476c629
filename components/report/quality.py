"""Looks at every site of new plates for their quality control. Reads packed sites; the measures are core.evaluation.quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from components.core import progress
from components.core.config import CHANNELS
from components.core.evaluation.plate_quality import Drift, PlateQuality, drift, plate_quality
from components.core.evaluation.quality import (
    SiteQuality,
    WellQuality,
    otsu_threshold,
    reasons_to_look,
    site_quality,
    well_quality,
)
from components.core.processes import cores
from components.core.screen.packed import SiteReader
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.tables import write_table

_BATCH = 8
"""Sites that one thread reads and looks at, at a time."""


@dataclass(frozen=True)
class Quality:
    """What quality control found.

    Attributes:
        wells: by id_code.
        reasons: to look at a well, by id_code; empty for most.
        plates: in the manifest's order.
    """

    wells: Mapping[str, WellQuality]
    reasons: Mapping[str, Sequence[str]]
    plates: Sequence[PlateQuality]


def look_at(plates: Manifest, reference: Manifest, predictions: pd.DataFrame, store: ObjectReader) -> Quality:
    """Looks at all wells of new plates, controls included.

    Args:
        plates: their manifest.
        reference: what stands for the training screen.
        predictions: a predictions table of their treatment wells.
        store: where the packed plates are.

    Raises:
        InputError: a site is missing or broken.
    """
    sites = _sites(plates, store)
    wells: dict[str, WellQuality] = {}
    reasons: dict[str, Sequence[str]] = {}
    at = 0
    for plate in plates.plates:
        of_plate = []
        for well in plate.wells:
            of_plate.append(well_quality(sites[at : at + len(well.sites)]))
            at += len(well.sites)
        ids = [well.id_code for well in plate.wells]
        wells.update(zip(ids, of_plate, strict=True))
        reasons.update(zip(ids, reasons_to_look(of_plate, CHANNELS), strict=True))
    cell_types = dict.fromkeys(plate.cell_type for plate in plates.plates)
    drifts = {cell_type: _drift(plates, reference, cell_type) for cell_type in cell_types}
    return Quality(wells, reasons, plate_quality(plates.plates, wells, reasons, drifts, predictions))


def _sites(plates: Manifest, store: ObjectReader) -> list[SiteQuality]:
    """Every site of the manifest, in its order."""
    reader = SiteReader(store, plates)
    table = reader.table
    threshold_P = [otsu_threshold(np.array(plate.histograms[0])) for plate in plates.plates]
    plate_S = table.plate_W[table.well_S]

    def look(batch: range) -> list[SiteQuality]:
        return [
            site_quality(pixels_CSS, threshold_P[plate_S[site]])
            for site, pixels_CSS in zip(batch, reader.read(list(batch)), strict=True)
        ]

    batches = [range(first, min(first + _BATCH, table.sites)) for first in range(0, table.sites, _BATCH)]
    found: list[SiteQuality] = []
    with ThreadPoolExecutor(cores(), thread_name_prefix="look") as pool:
        for of_batch in pool.map(look, batches):
            found += of_batch
            progress.advance("sites", len(found), table.sites)
    return found


def _drift(plates: Manifest, reference: Manifest, cell_type: str) -> Drift | None:
    new = [plate.histograms for plate in plates.plates if plate.cell_type == cell_type]
    known = [plate for plate in reference.plates if plate.cell_type == cell_type]
    if not known:
        return None
    return drift(np.array(new), np.array([plate.histograms for plate in known]), [plate.experiment for plate in known])


def write_quality(path: Path, plates: Manifest, quality: Quality, predictions: pd.DataFrame) -> None:
    """Writes qc.csv: one row a well, in the manifest's order; empty if a value does not exist."""
    rows = []
    for plate in plates.plates:
        for well in plate.wells:
            measured = quality.wells[well.id_code]
            rows.append({
                "id_code": well.id_code, "experiment": plate.experiment, "plate": plate.plate, "well": well.well,
                "well_type": well.well_type, "look_at": "; ".join(quality.reasons[well.id_code]), "confidence": np.nan,
                "nuclei_share": measured.nuclei,
                **{f"focus_{c}": value for c, value in zip(CHANNELS, measured.focus_C, strict=True)},
                **{f"saturated_{c}": value for c, value in zip(CHANNELS, measured.saturated_C, strict=True)},
            })  # fmt: skip
    table = pd.DataFrame(rows)
    table["confidence"] = table["id_code"].map(predictions.set_index("id_code")["confidence"])
    write_table(path, table)
