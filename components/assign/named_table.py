"""The table of named wells that assign hands to the report. Writes one CSV; labels in the input's encoding."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from components.core.prior.assignment import WellPredictions

COLUMNS = (
    "id_code", "sirna", "confidence", "margin", "raw_sirna", "raw_confidence",
    "group_sirna", "group_confidence", "top5", "raw_confidence_uncalibrated",
)  # fmt: skip


def write_names(path: Path, ids_W: Sequence[str], names: WellPredictions, treatments: Sequence[str]) -> None:
    """Writes one row a well, in the order of its id_code; only the header where there are no wells.

    Args:
        path: file to write.
        ids_W: id_code of each well.
        names: what the wells are called.
        treatments: labels in class order.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for w in sorted(range(len(ids_W)), key=lambda row: ids_W[row]):
            table.writerow([
                ids_W[w],
                treatments[names.sirna_W[w]], f"{names.confidence_W[w]:.6g}", f"{names.margin_W[w]:.6g}",
                treatments[names.raw_W[w]], f"{names.raw_confidence_W[w]:.6g}",
                treatments[names.group_W[w]], f"{names.group_confidence_W[w]:.6g}",
                " ".join(treatments[k] for k in names.top_W5[w]), f"{names.raw_uncalibrated_W[w]:.6g}",
            ])  # fmt: skip
