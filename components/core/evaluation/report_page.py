"""The report of a run: the content of its page. The words are in report_page.html.j2."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from components.core.config import RunConfig
from components.core.evaluation.calibration import kept_above
from components.core.evaluation.figures import learning_curves, reliability
from components.core.evaluation.page import Notice, count_wells, plate_maps, render_page
from components.core.evaluation.plate_statistics import batch_effects, compute_statistics, draw_statistics
from components.core.evaluation.predictions import SCORES, Score, correct, scored
from components.core.evaluation.scores import recall_by_sirna, score_table, worst_sirnas
from components.core.storage.manifest import Manifest

WORST = 15
"""Rows of the confusion table."""
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
KINDS: dict[Score, str] = {"out_of_fold": "", "unlabelled": "transductive", "holdout": "inductive"}
EXPLANATIONS: dict[Score, str] = {
    "out_of_fold": "Labelled wells, predicted only by models that never saw their labels; checkpoints were selected on "
    "them, so expect this to be slightly optimistic.",
    "unlabelled": "Wells whose images took part in training without labels; their truth was read by this table alone.",
    "holdout": "Experiments that no step but prediction read, not even as images: what to expect of a new batch.",
}


@dataclass(frozen=True)
class Picture:
    """A well's strip of images as PNG bytes, and its row of the predictions table."""

    well: Any
    png: bytes


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    config: RunConfig
    screen: Manifest
    holdout: Manifest
    predictions: pd.DataFrame
    """see evaluation.predictions"""
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    arrangements: Sequence[Mapping[str, Any]]
    """experiments of assign.json, each with its cell_type"""
    temperatures: Mapping[str, Mapping[str, float]]
    """by cell type, then by the probabilities they calibrate: raw, group, balanced"""
    prior_used: bool
    """whether the plate design took part: switched on, and found in the screen"""
    pictures: Sequence[Picture]
    pictures_of: Score | None
    pictures_note: str | None
    """why there are no pictures"""
    notices: Sequence[Notice]
    lineage: Mapping[str, Any]


def render(report: Report) -> str:
    """The whole page as HTML."""
    plates = (*report.screen.plates, *report.holdout.plates)
    found = {plate.cell_type for plate in plates}
    order = dict.fromkeys((*report.config.screen.cell_types, *(plate.cell_type for plate in plates)))
    cell_types = [name for name in order if name in found]
    statistics = compute_statistics(plates, report.config.standardise.domain)
    curves = {
        "Pretraining": learning_curves.draw_pretrain(report.history),
        "Mean teacher, by cell type": learning_curves.draw_mean_teacher(report.history, cell_types),
    }
    return render_page(
        "report_page.html.j2",
        report.config,
        report.screen,
        report.lineage,
        report=report,
        cell_types=cell_types,
        counts=count_wells(plates),
        blocks=_score_blocks(report.predictions, cell_types),
        titles=reliability.TITLES,
        kinds=KINDS,
        not_validated=_not_validated(report.metrics["folds"]),
        roles={"oof": "out of fold"},
        curves=[(title, Markup(svg)) for title, svg in curves.items() if svg],
        maps=_plate_maps(report),
        reliability=Markup(reliability.draw(report.predictions) or ""),
        statistics=Markup(draw_statistics(statistics, cell_types, report.config.standardise.domain)),
        effects=batch_effects(statistics, cell_types),
        pictures=[(p, base64.b64encode(p.png).decode()) for p in report.pictures],
        **_confusions(report.predictions),
    )


def _score_blocks(predictions: pd.DataFrame, cell_types: Sequence[str]) -> list[dict[str, Any]]:
    """For each score with truth, the most demanding last: its accuracies, and what confidence thresholds keep."""
    return [
        {
            "score": score,
            "table": score_table(known, cell_types),
            "explanation": EXPLANATIONS[score],
            "wells": len(known),
            "experiments": known["experiment"].nunique(),
            "kept": kept_above(known["confidence"], correct(known)["assigned"], THRESHOLDS),
        }
        for score in SCORES
        if not (known := scored(predictions, score)).empty
    ]


def _not_validated(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    by_type: dict[str, list[str]] = {}
    for fold in folds:
        for name in fold["not_validated"]:
            by_type.setdefault(name, []).append(str(fold["fold"]))
    return [f"{name} in fold{'s' if len(ns) > 1 else ''} {', '.join(ns)}" for name, ns in by_type.items()]


def _plate_maps(report: Report) -> list[dict[str, Any]]:
    """Unlabelled experiments, then held-out ones, each with its plates in order."""
    unlabelled = [plate for plate in report.screen.plates if not plate.labelled]
    shown = [
        sorted(plates, key=lambda plate: (plate.experiment, plate.plate))
        for plates in (unlabelled, report.holdout.plates)
    ]
    titles = {plate.experiment: reliability.TITLES["unlabelled"] for plate in shown[0]}
    titles |= {plate.experiment: reliability.TITLES["holdout"] for plate in shown[1]}
    return plate_maps([*shown[0], *shown[1]], report.predictions, report.arrangements, titles)


def _confusions(predictions: pd.DataFrame) -> dict[str, Any]:
    """The worst siRNAs over the score with the most scored wells: a siRNA has only one well an experiment."""
    best = max(SCORES, key=lambda score: len(scored(predictions, score)))
    wells = scored(predictions, best)
    recall = recall_by_sirna(wells)
    return {
        "confused_in": None if wells.empty else best,
        "confusions": worst_sirnas(wells, WORST),
        "always_right": int((recall["assigned"] == 1).sum()),
        "sirnas_seen": len(recall),
    }
