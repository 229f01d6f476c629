"""Looks at every site of new plates for their quality control. Reads packed sites; the measures are core.evaluation.quality."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.core import progress
from components.core.config import CHANNELS
from components.core.evaluation.named_wells import NamedWell
from components.core.evaluation.quality.cell_density import otsu_threshold
from components.core.evaluation.quality.drift import Drift, drift
from components.core.evaluation.quality.plate_confidence import confidence_by_plate
from components.core.evaluation.quality.plate_quality import PlateQuality, plate_quality
from components.core.evaluation.quality.site_quality import SiteQuality, site_quality
from components.core.evaluation.quality.wells_to_look_at import WellQuality, reasons_to_look, well_quality
from components.core.processes import cores
from components.core.screen.packed import SiteReader
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest

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


def look_at(plates: Manifest, reference: Manifest, named: Sequence[NamedWell], store: ObjectReader) -> Quality:
    """Looks at all wells of new plates, controls included.

    Args:
        plates: their manifest.
        reference: what stands for the training screen.
        named: the named wells.
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
    return Quality(wells, reasons, plate_quality(plates.plates, wells, reasons, drifts, confidence_by_plate(named)))


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


def write_quality(path: Path, plates: Manifest, quality: Quality, named: Mapping[str, NamedWell]) -> None:
    """Writes qc.csv: one row a well, in the manifest's order; empty where a value does not exist."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        of_channel = [f"{what}_{channel}" for what in ("focus", "saturated") for channel in CHANNELS]
        header = ["id_code", "experiment", "plate", "well", "well_type", "look_at", "confidence", "nuclei_share"]
        table.writerow([*header, *of_channel])
        for plate in plates.plates:
            for well in plate.wells:
                found, name = quality.wells[well.id_code], named.get(well.id_code)
                values = [found.nuclei, *found.focus_C, *found.saturated_C]
                table.writerow([
                    well.id_code, plate.experiment, plate.plate, well.well, well.well_type,
                    "; ".join(quality.reasons[well.id_code]), f"{name.confidence:.6g}" if name else "",
                    *("" if math.isnan(value) else f"{value:.6g}" for value in values),
                ])  # fmt: skip
