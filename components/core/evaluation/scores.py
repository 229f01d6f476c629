"""The table of a report: three scores x three stages x cell types, as metrics.json holds it. Pure arithmetic on wells.

The three scores differ in what training saw of the wells, and are never mixed:
out_of_fold: labelled wells, by models that never saw their labels; checkpoints were selected on them.
unlabelled: transductive; the images were trained on, the labels never seen.
holdout: inductive; neither images nor labels were seen by any step but prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.core.evaluation.named_wells import STAGES, NamedWell, Score, Stage, by_cell_type, scored
from components.core.evaluation.reliability import expected_calibration_error

SCHEMA = 1
OVERALL = "overall"


@dataclass(frozen=True)
class Accuracy:
    """Well top-1: `correct` of `wells`."""

    correct: int
    wells: int

    @property
    def value(self) -> float:
        """The fraction of wells that are correct."""
        return self.correct / self.wells

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """The Wilson score interval (Wilson 1927), 95 % by default.

        Wells of one experiment share its batch effect, so this is a lower bound on the real uncertainty.
        """
        n, p = self.wells, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


ScoreTable = dict[Stage, dict[str, Accuracy]]
"""Accuracy by stage, then by "overall" and cell type."""


def score_table(wells: Iterable[NamedWell], cell_types: Sequence[str]) -> ScoreTable:
    """Accuracies of the wells whose truth is known; empty where there are none."""
    known = scored(wells)
    if not known:
        return {}
    parts = {OVERALL: known, **by_cell_type(known, cell_types)}
    return {
        stage: {name: Accuracy(sum(w.correct_at(stage) for w in part), len(part)) for name, part in parts.items()}
        for stage in STAGES
    }


def build_metrics(
    wells: Mapping[Score, Sequence[NamedWell]],
    cell_types: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    validated: Mapping[tuple[int, str], bool],
) -> dict[str, Any]:
    """Everything that metrics.json holds.

    Args:
        wells: by score; those without truth do not count.
        cell_types: in the order of the columns.
        history: one record an epoch, each once.
        validated: by fold and cell type, whether the fold had validation wells of it.

    Returns:
        `schema`, one table a score (fractions by stage and cell type), `folds`, `throughput`, and beside them
        `wells` (counts by score) and `calibration` (expected calibration error by score and stage).
    """
    tables = {score: score_table(members, cell_types) for score, members in wells.items()}
    out_of_fold = scored(wells.get("out_of_fold", ()))
    folds = []
    numbers = {w.fold for w in out_of_fold if w.fold is not None} | {fold for fold, _ in validated}
    for fold in sorted(numbers):
        table = score_table([w for w in out_of_fold if w.fold == fold], cell_types)
        unvalidated = sorted(name for (number, name), done in validated.items() if number == fold and not done)
        folds.append({"fold": fold, **_values(table), "not_validated": unvalidated})
    metrics: dict[str, Any] = {"schema": SCHEMA}
    for score, table in tables.items():
        if table:
            metrics[score] = _values(table)
    metrics["folds"] = folds
    metrics["throughput"] = throughput(history)
    metrics["wells"] = {
        score: {name: cell.wells for name, cell in table["raw"].items()} for score, table in tables.items() if table
    }
    metrics["calibration"] = {
        score: {
            f"{stage}_ece": round(
                expected_calibration_error(
                    [w.confidence_at(stage) for w in known], [w.correct_at(stage) for w in known]
                ),
                6,
            )
            for stage in STAGES
        }
        for score, members in wells.items()
        if (known := scored(members))
    }
    return metrics


def throughput(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the training steps took, over folds and cell types.

    Returns:
        For each step STEP_sites_per_s, all its sites over all its seconds; STEP_data_wait, the share of its seconds in
        which it waited for pixels; STEP_peak_memory_gib, the largest of an epoch. The last two where they were recorded.
    """
    found: dict[str, float] = {}
    for step in dict.fromkeys(record["step"] for record in history):
        records = [record for record in history if record["step"] == step]
        seconds = sum(record["seconds"] for record in records)
        if not seconds:
            continue
        found[f"{step}_sites_per_s"] = round(sum(r["sites_per_s"] * r["seconds"] for r in records) / seconds, 3)
        if all("data_wait" in record for record in records):
            found[f"{step}_data_wait"] = round(sum(r["data_wait"] * r["seconds"] for r in records) / seconds, 4)
            found[f"{step}_peak_memory_gib"] = max(record["peak_memory_gib"] for record in records)
    return found


def _values(table: ScoreTable) -> dict[str, dict[str, float]]:
    return {stage: {name: round(cell.value, 6) for name, cell in row.items()} for stage, row in table.items()}
