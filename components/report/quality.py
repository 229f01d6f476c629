"""Measures every site of new plates for their quality control. Reads packed sites; the measures are in core.evaluation.quality."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.core import progress
from components.core.evaluation.quality import (
    columns,
    nuclei_channel,
    otsu_threshold,
    reasons_to_look,
    saturation_level,
    site_quality,
    well_quality,
)
from components.core.processes import cores
from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore

_BATCH = 8
"""Sites that a thread reads and measures at a time."""


def quality_columns(channels: Sequence[str]) -> list[str]:
    """The columns of qc.csv; nuclei_share only if a channel shows nuclei."""
    known = ["id_code", "experiment", "plate", "well", "role", "look_at", "confidence", "nuclei_share"]
    return [*known, *columns("focus", channels), *columns("saturated", channels)]


def measure_wells(plates: Manifest, predictions: pd.DataFrame, store: ObjectStore) -> pd.DataFrame:
    """Measures all wells of new plates, controls included.

    Args:
        plates: their manifest.
        predictions: a predictions table of their treatment wells.
        store: the store of the packed plates.

    Returns:
        A row a well, in the manifest's order: `quality_columns` (confidence is NaN for controls), and noisiest_* of
        `quality.well_quality`.

    Raises:
        InputError: a site is missing or broken.
    """
    reader = SiteReader(store, plates)
    measures = well_quality(_measure_sites(reader, plates), reader.table.well_S, plates.channels)
    rows = [
        (well.id_code, plate.experiment, plate.plate, well.well, well.role)
        for plate in plates.plates
        for well in plate.wells
    ]
    wells = pd.DataFrame(rows, columns=["id_code", "experiment", "plate", "well", "role"]).join(measures)
    wells["confidence"] = wells["id_code"].map(predictions.set_index("id_code")["confidence"])
    wells["look_at"] = ""
    for _, of_plate in wells.groupby(["experiment", "plate"]):
        wells.loc[of_plate.index, "look_at"] = reasons_to_look(of_plate, plates.channels)
    return wells


def _measure_sites(reader: SiteReader, plates: Manifest) -> NDArray[np.float64]:
    """`site_quality` of every site, in the manifest's order."""
    table = reader.table
    nuclei, all_CG = nuclei_channel(plates.channels), np.zeros((), np.int64)
    threshold_P = []
    for plate in plates.plates:
        counts_CG = plate.histograms.array
        all_CG = all_CG + counts_CG
        threshold_P.append(0 if nuclei is None else otsu_threshold(counts_CG[nuclei]))
    level = saturation_level(all_CG)
    plate_S = table.plate_W[table.well_S]

    def measure(batch: range) -> list[NDArray[np.float64]]:
        images = reader.read(list(batch))
        return [
            site_quality(image, threshold_P[plate_S[site]], nuclei, level)
            for site, image in zip(batch, images, strict=True)
        ]

    batches = [range(first, min(first + _BATCH, table.sites)) for first in range(0, table.sites, _BATCH)]
    found: list[NDArray[np.float64]] = []
    with ThreadPoolExecutor(cores(), thread_name_prefix="quality") as pool:
        for of_batch in pool.map(measure, batches):
            found += of_batch
            progress.advance("sites", len(found), table.sites)
    return np.array(found)
