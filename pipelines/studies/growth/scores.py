"""Accuracy of named wells against the truth of a simulated screen. Reads CSV; the truth is read here and nowhere else."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def accuracy(named: Mapping[str, Path], truth: Path, column: str) -> dict[str, float]:
    """Well top-1 on the unlabelled treatment wells, over all wells (`overall`) and by cell type.

    Args:
        named: output folder of assign by cell type.
        truth: id_code,sirna.
        column: `raw_sirna` before the prior, `sirna` after assignment.
    """
    with truth.open(newline="", encoding="utf-8") as file:
        true = {row["id_code"]: row["sirna"] for row in csv.DictReader(file)}
    hits: dict[str, list[bool]] = {}
    for cell_type, folder in named.items():
        with (folder / "unlabelled.csv").open(newline="", encoding="utf-8") as file:
            hits[cell_type] = [true[row["id_code"]] == row[column] for row in csv.DictReader(file)]
    everything = [hit for of_type in hits.values() for hit in of_type]
    return {
        "overall": sum(everything) / len(everything),
        **{cell_type: sum(of_type) / len(of_type) for cell_type, of_type in hits.items()},
    }
