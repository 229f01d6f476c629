"""The numbers of a report from a predictions table: accuracies as metrics.json holds them, confusions, example wells. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from components.core.evaluation.calibration import expected_calibration_error
from components.core.evaluation.predictions import CONFIDENCE, SCORES, STAGES, Score, Stage, correct, scored

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

        Wells of one experiment share its batch effect, so the real uncertainty is larger.
        """
        n, p = self.wells, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


ScoreTable = dict[Stage, dict[str, Accuracy]]
"""Accuracy by stage, then by "overall" and cell type."""


def score_table(wells: pd.DataFrame, cell_types: Sequence[str]) -> ScoreTable:
    """Accuracies of the wells whose truth is known; empty if there are none. Cell types in the order of `cell_types`."""
    known = scored(wells)
    if known.empty:
        return {}
    hits = correct(known)
    by_type = hits.groupby(known["cell_type"]).agg(["sum", "size"])
    names = [name for name in dict.fromkeys((*cell_types, *known["cell_type"])) if name in by_type.index]
    return {
        stage: {
            OVERALL: Accuracy(int(hits[stage].sum()), len(hits)),
            **{name: Accuracy(*map(int, by_type.loc[name, stage])) for name in names},
        }
        for stage in STAGES
    }


def build_metrics(
    predictions: pd.DataFrame,
    cell_types: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    validated: Mapping[tuple[int, str], bool],
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        predictions: a predictions table; wells without truth do not count.
        cell_types: in the order of the columns.
        history: one record an epoch, each once.
        validated: by fold and cell type, whether the fold had validation wells of it.

    Returns:
        `schema`, one table a score (fractions by stage and cell type), `folds`, `throughput`, `wells` (counts by score)
        and `calibration` (expected calibration error by score and stage).
    """
    wells = {score: known for score in SCORES if not (known := scored(predictions, score)).empty}
    tables = {score: score_table(known, cell_types) for score, known in wells.items()}
    out_of_fold = scored(predictions, "out_of_fold")
    folds = []
    for fold in sorted({int(fold) for fold in out_of_fold["fold"] if fold >= 0} | {fold for fold, _ in validated}):
        table = score_table(out_of_fold[out_of_fold["fold"] == fold], cell_types)
        unvalidated = sorted(name for (number, name), done in validated.items() if number == fold and not done)
        folds.append({"fold": fold, **_values(table), "not_validated": unvalidated})
    return {
        "schema": SCHEMA,
        **{score: _values(table) for score, table in tables.items()},
        "folds": folds,
        "throughput": throughput(history),
        "wells": {score: {name: cell.wells for name, cell in table["raw"].items()} for score, table in tables.items()},
        "calibration": {score: _calibration_errors(known) for score, known in wells.items()},
    }


def _values(table: ScoreTable) -> dict[str, dict[str, float]]:
    return {stage: {name: round(cell.value, 6) for name, cell in row.items()} for stage, row in table.items()}


def _calibration_errors(known: pd.DataFrame) -> dict[str, float]:
    hits = correct(known)
    return {
        f"{stage}_ece": round(expected_calibration_error(known[CONFIDENCE[stage]], hits[stage]), 6) for stage in STAGES
    }


def throughput(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Training speed over folds and cell types.

    Returns:
        For each step STEP_sites_per_s, all its sites over all its seconds; STEP_data_wait, the fraction of its seconds
        spent waiting for pixels; STEP_peak_memory_gib, the largest of an epoch. The last two only if recorded.
    """
    found: dict[str, float] = {}
    if not history:
        return found
    for step, records in pd.DataFrame(history).groupby("step", sort=False):
        seconds = records["seconds"].sum()
        if not seconds:
            continue
        found[f"{step}_sites_per_s"] = round(float((records["sites_per_s"] * records["seconds"]).sum() / seconds), 3)
        if "data_wait" in records and records["data_wait"].notna().all():
            found[f"{step}_data_wait"] = round(float((records["data_wait"] * records["seconds"]).sum() / seconds), 4)
            found[f"{step}_peak_memory_gib"] = float(records["peak_memory_gib"].max())
    return found


def recall_by_sirna(wells: pd.DataFrame) -> pd.DataFrame:
    """For each true siRNA (index `truth`) its `wells`, and the fractions correct `assigned` and `raw`."""
    known = scored(wells)
    by_sirna = correct(known).groupby(known["truth"])
    return by_sirna[["assigned", "raw"]].mean().assign(wells=by_sirna.size())


def worst_sirnas(wells: pd.DataFrame, limit: int) -> list[dict[str, Any]]:
    """The siRNAs of lowest recall after assignment that were missed at least once, worst first.

    Ties go to the lower raw recall, then to the larger number of wells, then to the label, so that the order is stable.

    Args:
        wells: a predictions table.
        limit: the largest number of siRNAs.

    Returns:
        For each its `truth`, `wells`, recalls `assigned` and `raw`; `by_cell_type`, a dictionary from cell type to (correct
        after assignment, wells); `mistaken_for`, pairs of a wrong prediction and its number of wells, most frequent first.
    """
    recall = recall_by_sirna(wells)
    order, ascending = ["assigned", "raw", "wells", "truth"], [True, True, False, True]
    worst = recall[recall["assigned"] < 1].sort_values(order, ascending=ascending).head(limit)
    known, found = scored(wells), []
    for row in worst.reset_index().to_dict("records"):
        members = known[known["truth"] == row["truth"]]
        hits = correct(members)["assigned"]
        by_type = hits.groupby(members["cell_type"]).agg(["sum", "size"])
        wrong = members.loc[~hits, "sirna"].sort_values().value_counts()
        found.append({
            **row,
            "by_cell_type": {str(name): (int(right), int(size)) for name, right, size in by_type.itertuples()},
            "mistaken_for": [(str(label), int(count)) for label, count in wrong.items()],
        })  # fmt: skip
    return [{str(name): value for name, value in row.items()} for row in found]


def choose_examples(predictions: pd.DataFrame, right: int = 3, wrong: int = 5) -> tuple[Score | None, pd.DataFrame]:
    """Wells worth showing, of one score: unlabelled if its truth is known, else out of fold, else holdout.

    The most confident first, in turn over cell types, so that an easy cell type does not fill the selection. Confident wrong
    predictions are the most informative: they suggest siRNAs with the same phenotype, or a swapped plate.

    Returns:
        The score of the wells (None if no truth is known) and their rows, correct ones first.
    """
    for score in ("unlabelled", "out_of_fold", "holdout"):
        known = scored(predictions, score)
        if not known.empty:
            hits = correct(known)["assigned"]
            return score, pd.concat([_in_turn(known[hits], right), _in_turn(known[~hits], wrong)])
    return None, predictions[:0]


def _in_turn(wells: pd.DataFrame, limit: int) -> pd.DataFrame:
    """The most confident wells, the best of each cell type before the second best of any."""
    by_confidence = wells.sort_values(["confidence", "id_code"], ascending=[False, True])
    rank = by_confidence.groupby("cell_type").cumcount()
    return by_confidence.loc[rank.sort_values(kind="stable").index[:limit]]
