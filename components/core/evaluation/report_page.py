"""The page of a run and the page of new plates. Their text is in report_page.html.j2 and prediction_page.html.j2."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from components.core.evaluation.calibration import kept_above
from components.core.evaluation.figures import learning_curves, reliability
from components.core.evaluation.figures.plate_statistics import channel_spread, draw_statistics, plate_statistics
from components.core.evaluation.page import Report, channel_names, plate_maps, render_page
from components.core.evaluation.plate_quality import BLURRED_PLATE
from components.core.evaluation.predictions import SCORES, UNSURE, Score, correct, scored
from components.core.evaluation.quality import LIMIT, by_channel
from components.core.evaluation.scores import recall_by_sirna, score_table, worst_sirnas

WORST = 15
"""Rows of the confusion table."""
SHOWN_WELLS = 200
"""Rows of the table of wells to look at; qc.csv has all."""
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
KINDS: dict[Score, str] = {"out_of_fold": "", "unlabelled": "transductive", "holdout": "inductive"}
EXPLANATIONS: dict[Score, str] = {
    "out_of_fold": "Labelled wells, predicted only by models that never saw their labels; checkpoints were selected on "
    "them, so this is slightly optimistic.",
    "unlabelled": "Wells whose images took part in training without labels; their truth is read for this table only.",
    "holdout": "Experiments that no step but prediction read, not even as images: what to expect of a new batch.",
}


def render_report(
    report: Report,
    history: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[Any, bytes]],
    pictures_of: Score | None,
    pictures_note: str | None,
) -> str:
    """The page of a training run as HTML.

    Args:
        report: what is reported.
        history: the record of every epoch.
        pictures: example wells, rows of the predictions table, each with its strip of images as PNG.
        pictures_of: the score of those wells; None if no truth is known.
        pictures_note: why there are no pictures; None if there are some.
    """
    predictions, domain = report.predictions, report.config.standardise.domain
    plates = (*report.screen.plates, *report.holdout.plates)
    found = {plate.cell_type for plate in plates}
    order = dict.fromkeys((*report.config.screen.cell_types, *(plate.cell_type for plate in plates)))
    cell_types = [name for name in order if name in found]
    imaged, standardised = plate_statistics(report.screen.model_copy(update={"plates": plates}), domain)
    channels = channel_names(report.screen.channels)
    curves = {
        "Pretraining": learning_curves.draw_pretrain(history),
        "Mean teacher, by cell type": learning_curves.draw_mean_teacher(history, cell_types),
    }
    return render_page(
        "report_page.html.j2",
        report,
        plates,
        cell_types=cell_types,
        blocks=_score_blocks(predictions, cell_types),
        titles=reliability.TITLES,
        kinds=KINDS,
        not_validated=_not_validated(report.metrics["folds"]),
        roles={"oof": "out of fold"},
        curves=[(title, Markup(svg)) for title, svg in curves.items() if svg],
        maps=_maps(report),
        reliability=Markup(reliability.draw(predictions) or ""),
        statistics=Markup(draw_statistics(plates, imaged, standardised, cell_types, channels, domain)),
        spread=channel_spread(plates, imaged[0], cell_types),
        pictures=[(well, base64.b64encode(png).decode()) for well, png in pictures],
        pictures_of=pictures_of,
        pictures_note=pictures_note,
        **_confusions(predictions),
    )


def render_prediction(report: Report, plates: pd.DataFrame, wells: pd.DataFrame) -> str:
    """The page of new plates as HTML.

    Args:
        report: what is reported.
        plates: from `plate_quality`, in the order of the manifest.
        wells: a row a well: id_code, well_type and look_at.
    """
    records = report.holdout.plates
    cell_types = list(dict.fromkeys(plate.cell_type for plate in records))
    predicted = {str(row.id_code): row for row in report.predictions.itertuples(index=False)}
    marked = wells[wells["look_at"] != ""]
    channels = channel_names(report.holdout.channels)
    plates = plates.copy()
    for worst, measure in (("min", "sharpness"), ("max", "saturated")):
        values = by_channel(plates, measure, channels)
        plates[measure] = values.agg(worst, axis=1)
        plates[f"{measure}_channel"] = values.dropna(how="all").agg(f"idx{worst}", axis=1)
    return render_page(
        "prediction_page.html.j2",
        report,
        records,
        model=report.screen.model,
        cell_types=cell_types,
        classified=len(predicted),
        unsure=int((report.predictions["confidence"] < UNSURE).sum()),
        table=score_table(report.predictions, cell_types),
        roles={"holdout": "new plates"},
        maps=plate_maps(report, records, {}, set(marked["id_code"])),
        rows=plates.astype(object).where(plates.notna(), None).to_dict("records"),
        drifting=report.metrics["quality"]["plates_that_drift"],
        blurred_plates=report.metrics["quality"]["blurred_plates"],
        marked=[(well, predicted.get(str(well.id_code))) for well in marked.head(SHOWN_WELLS).itertuples()],
        more_marked=max(0, len(marked) - SHOWN_WELLS),
        limit=LIMIT,
        blurred=BLURRED_PLATE,
    )


def _score_blocks(predictions: pd.DataFrame, cell_types: Sequence[str]) -> list[dict[str, Any]]:
    """The accuracies of each score with truth, and what confidence thresholds keep."""
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


def _maps(report: Report) -> list[dict[str, Any]]:
    """Maps of the unlabelled experiments, then of the held-out ones, each with its plates in order."""
    shown, titles = [], {}
    unlabelled = [plate for plate in report.screen.plates if not plate.labelled]
    scores: tuple[Score, ...] = ("unlabelled", "holdout")
    for score, plates in zip(scores, (unlabelled, report.holdout.plates), strict=True):
        shown += sorted(plates, key=lambda plate: (plate.experiment, plate.plate))
        titles.update({plate.experiment: reliability.TITLES[score] for plate in plates})
    return plate_maps(report, shown, titles)


def _confusions(predictions: pd.DataFrame) -> dict[str, Any]:
    """The worst siRNAs, in the score with the most wells: an experiment has only one well of a siRNA."""
    best = max(SCORES, key=lambda score: len(scored(predictions, score)))
    wells = scored(predictions, best)
    recall = recall_by_sirna(wells)
    return {
        "confused_in": None if wells.empty else best,
        "confusions": worst_sirnas(wells, WORST),
        "always_right": int((recall["assigned"] == 1).sum()),
        "sirnas_seen": len(recall),
    }
