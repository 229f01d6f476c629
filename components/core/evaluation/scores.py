"""The predictions of a run as one table, and the numbers of its report: accuracies, confusions, example wells. Pure pandas.

Columns of a predictions table, a row a treatment well, none missing unless noted:
    score: out_of_fold, unlabelled or holdout, see SCORES.
    id_code, experiment, plate, well, cell_type.
    fold: int, the first fold that validates on the well; -1, or a number that no fold has, if none does.
    perturbation, raw_perturbation, group_perturbation: labels in the screen's encoding, see LABEL.
    confidence, raw_confidence, group_confidence: calibrated probabilities of those, float.
    margin: lead of the assigned perturbation over the most probable other one, float.
    raw_confidence_uncalibrated: raw confidence at temperature 1, float.
    top5: the most probable treatments before the prior, a JSON list.
    truth: the true label; NaN if unknown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from components.core.evaluation.calibration import expected_calibration_error

SCHEMA = 1
OVERALL = "overall"

Stage = Literal["raw", "group", "assigned"]
Score = Literal["out_of_fold", "unlabelled", "holdout"]
STAGES: tuple[Stage, ...] = ("raw", "group", "assigned")
SCORES: tuple[Score, ...] = ("out_of_fold", "unlabelled", "holdout")
"""What training saw of the wells; the scores are never mixed.

out_of_fold: labelled wells, predicted by models that never saw their labels; checkpoints were selected on them.
unlabelled: transductive; the images were trained on, the labels never seen.
holdout: inductive; neither images nor labels were seen by any step but prediction.
"""
LABEL: dict[Stage, str] = {
    "raw": "raw_perturbation", "group": "group_perturbation", "assigned": "perturbation",
}  # fmt: skip
"""The column of the predicted perturbation at each stage."""
CONFIDENCE: dict[Stage, str] = {"raw": "raw_confidence", "group": "group_confidence", "assigned": "confidence"}
"""The column of its calibrated probability."""
UNSURE = 0.6
"""A prediction of a lower confidence is called unsure, and its colour on the plate maps is a warm one."""
SAVED = ("id_code", "perturbation", "confidence", "margin", "raw_perturbation", "raw_confidence", "top5")
"""Columns of predictions.csv and its siblings, where the screen's word takes the place of `perturbation`."""


FEW_LABELS = 40
"""Labels up to which a page shows all of them, with their precision and a matrix of confusions."""


def saved(predictions: pd.DataFrame, column: str, own: pd.DataFrame, truth: bool = False) -> pd.DataFrame:
    """The content of predictions.csv or a sibling: the columns SAVED, the true label if asked for, then the screen's own.

    Args:
        predictions: the wells, a predictions table.
        column: name of the column of labels; that of true labels is `true_` and this name.
        own: the screen's own columns of its wells, by id_code; they may be none.
        truth: whether to add the true label.
    """
    names = {"perturbation": column, "raw_perturbation": f"raw_{column}", "truth": f"true_{column}"}
    columns = [*SAVED, "truth"] if truth else list(SAVED)
    return predictions[columns].rename(columns=names).join(own, on="id_code")


def scored(predictions: pd.DataFrame, score: Score | None = None) -> pd.DataFrame:
    """The wells whose truth is known, of one score or of all."""
    known = predictions["truth"].notna()
    return predictions[known if score is None else known & (predictions["score"] == score)]


def correct(predictions: pd.DataFrame) -> pd.DataFrame:
    """Whether each well's prediction is its truth: one column of booleans a stage; False if the truth is unknown."""
    return pd.DataFrame({stage: predictions[LABEL[stage]] == predictions["truth"] for stage in STAGES})


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


def balanced_accuracy(wells: pd.DataFrame) -> dict[Stage, dict[str, float]]:
    """By stage, then by "overall" and cell type: the mean over labels of their recall, each label counting the same.

    Labels without wells do not count. Wells whose truth is unknown are left out; empty if there are no others.

    Source: Brodersen et al. 2010 (doi:10.1109/ICPR.2010.764), for several classes as in scikit-learn.
    """
    known = scored(wells)
    if known.empty:
        return {}
    hits = correct(known)
    overall = hits.groupby(known["truth"]).mean().mean()
    by_type = hits.groupby([known["cell_type"], known["truth"]]).mean().groupby(level="cell_type").mean()
    return {
        stage: {
            OVERALL: round(float(overall[stage]), 6),
            **{str(name): round(float(value), 6) for name, value in by_type[stage].items()},
        }
        for stage in STAGES
    }


def build_metrics(
    predictions: pd.DataFrame,
    cell_types: Sequence[str],
    history: Sequence[Mapping[str, Any]],
    validated: Mapping[tuple[int, str], bool],
    more_folds: Mapping[str, Collection[int]],
) -> dict[str, Any]:
    """The content of metrics.json: accuracies by score, stage and cell type, folds, throughput, wells, labels, calibration errors.

    Args:
        predictions: a predictions table; wells without truth do not count.
        cell_types: in the order of the columns.
        history: one record an epoch, each once.
        validated: by fold and cell type, whether the fold had validation wells of it.
        more_folds: further folds that validate on an experiment, by its name, where folds overlap; each of them is then scored
            on its wells' means over all of them.
    """
    wells = {score: known for score in SCORES if not (known := scored(predictions, score)).empty}
    tables = {score: score_table(known, cell_types) for score, known in wells.items()}
    out_of_fold = scored(predictions, "out_of_fold")
    folds = []
    for fold in sorted({int(fold) for fold in out_of_fold["fold"] if fold >= 0} | {fold for fold, _ in validated}):
        further = [experiment for experiment, others in more_folds.items() if fold in others]
        own = out_of_fold[(out_of_fold["fold"] == fold) | out_of_fold["experiment"].isin(further)]
        table = score_table(own, cell_types)
        unvalidated = sorted(name for (number, name), done in validated.items() if number == fold and not done)
        balanced = balanced_accuracy(own)
        folds.append({"fold": fold, **_values(table), "balanced_accuracy": balanced, "not_validated": unvalidated})
    return {
        "schema": SCHEMA,
        **{score: _values(table) for score, table in tables.items()},
        "folds": folds,
        "throughput": throughput(history),
        "wells": {score: {name: cell.wells for name, cell in table["raw"].items()} for score, table in tables.items()},
        "balanced_accuracy": {score: balanced_accuracy(known) for score, known in wells.items()},
        "labels": {score: _label_counts(known) for score, known in wells.items()},
        "calibration": {score: _calibration_errors(known) for score, known in wells.items()},
    }


def _label_counts(known: pd.DataFrame) -> dict[str, int]:
    """How many labels the wells have, and the wells of the rarest and of the commonest of them."""
    wells = known["truth"].value_counts()
    return {"count": len(wells), "fewest": int(wells.min()), "most": int(wells.max())}


def _values(table: ScoreTable) -> dict[str, dict[str, float]]:
    return {stage: {name: round(cell.value, 6) for name, cell in row.items()} for stage, row in table.items()}


def _calibration_errors(known: pd.DataFrame) -> dict[str, float]:
    hits = correct(known)
    return {
        f"{stage}_ece": round(expected_calibration_error(known[CONFIDENCE[stage]], hits[stage]), 6) for stage in STAGES
    }


def throughput(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each step STEP_sites_per_s, and if recorded STEP_data_wait (fraction of its seconds) and STEP_peak_memory_gib."""
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


def recall_by_perturbation(wells: pd.DataFrame) -> pd.DataFrame:
    """For each true perturbation (index `truth`) its `wells`, the fractions correct `assigned` and `raw`, and `precision`.

    Precision, after assignment, is the fraction of the wells predicted as the perturbation that are of it; NaN if none is.
    """
    known = scored(wells)
    hits = correct(known)
    by_perturbation = hits.groupby(known["truth"])
    precision = hits["assigned"].groupby(known["perturbation"]).mean()
    found = by_perturbation[["assigned", "raw"]].mean().assign(wells=by_perturbation.size())
    return found.assign(precision=precision.reindex(found.index))


def worst_perturbations(wells: pd.DataFrame, limit: int | None = None) -> list[dict[str, Any]]:
    """Perturbations by recall after assignment, worst first; ties by lower raw recall, more wells, label.

    Args:
        wells: a predictions table.
        limit: the largest number of them, without those that are always right; None gives all.

    Returns:
        For each its `truth`, `wells`, recalls `assigned` and `raw`, `precision` (None if it is never predicted);
        `by_cell_type`, a dictionary from cell type to (correct after assignment, wells); `mistaken_for`, pairs of a wrong
        prediction and its number of wells, most frequent first.
    """
    recall = recall_by_perturbation(wells)
    order, ascending = ["assigned", "raw", "wells", "truth"], [True, True, False, True]
    worst = recall.sort_values(order, ascending=ascending)
    if limit is not None:
        worst = worst[worst["assigned"] < 1].head(limit)
    worst = worst.astype(object).where(worst.notna(), None)
    known, found = scored(wells), []
    for row in worst.reset_index().to_dict("records"):
        members = known[known["truth"] == row["truth"]]
        hits = correct(members)["assigned"]
        by_type = hits.groupby(members["cell_type"]).agg(["sum", "size"])
        wrong = members.loc[~hits, "perturbation"].sort_values().value_counts()
        found.append({
            **row,
            "by_cell_type": {str(name): (int(right), int(size)) for name, right, size in by_type.itertuples()},
            "mistaken_for": [(str(label), int(count)) for label, count in wrong.items()],
        })  # fmt: skip
    return [{str(name): value for name, value in row.items()} for row in found]


def choose_examples(predictions: pd.DataFrame, right: int = 3, wrong: int = 5) -> tuple[Score | None, pd.DataFrame]:
    """Wells worth showing, of one score: unlabelled if its truth is known, else out of fold, else holdout.

    The most confident first: confident wrong predictions suggest perturbations with the same phenotype, or a swapped plate.

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
    """The most confident wells, the best of each cell type before the second best of any: an easy one must not fill the page."""
    by_confidence = wells.sort_values(["confidence", "id_code"], ascending=[False, True])
    rank = by_confidence.groupby("cell_type").cumcount()
    return by_confidence.loc[rank.sort_values(kind="stable").index[:limit]]
