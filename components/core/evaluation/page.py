"""The page of a run and the page of new plates. Data in, HTML out.

A page is one self-contained HTML file: figures inline, no script needed, nothing fetched. Text and layout are in the
templates: report_page.html.j2 and prediction_page.html.j2, page.html.j2 the frame, sections.html.j2 the parts of both.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from components.core.config import RunConfig
from components.core.evaluation.calibration import kept_above
from components.core.evaluation.figures import learning_curves, plate_map, reliability
from components.core.evaluation.figures.plate_statistics import channel_spread, draw_statistics, plate_statistics
from components.core.evaluation.plate_quality import BLURRED_PLATE
from components.core.evaluation.quality import LIMIT, by_channel, nuclei_channel, saturation_level
from components.core.evaluation.scores import (
    FEW_LABELS,
    SCORES,
    UNSURE,
    Score,
    correct,
    recall_by_perturbation,
    score_table,
    scored,
    worst_perturbations,
)
from components.core.evaluation.table import UNEQUAL, labels_are_unequal
from components.core.screen.wells import natural_key
from components.core.storage.manifest import Manifest, PlateRecord

WORST = 15
"""Rows of the confusion table."""
SHOWN_WELLS = 200
"""Rows of the table of wells to look at; qc.csv has all."""
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
KINDS: dict[Score, str] = {"out_of_fold": "", "unlabelled": "transductive", "holdout": "inductive"}
_EXPLANATIONS: dict[Score, str] = {
    "out_of_fold": "Labelled wells, predicted only by models that never saw their labels",  # see explanation
    "unlabelled": "Wells whose images took part in training without labels; their truth is read for this table only.",
    "holdout": "Experiments that no step but prediction read, not even as images: what to expect of a new batch.",
}


@dataclass(frozen=True)
class Report:
    """The content of the report of a run or of new plates."""

    config: RunConfig
    screen: Manifest  # of the training and unlabelled experiments, or the reference that names the model of new plates
    holdout: Manifest  # of the held-out experiments, or of the new plates
    predictions: pd.DataFrame  # see evaluation.scores
    arrangements: Sequence[Mapping[str, Any]]  # `experiments` of every assign.json, each with its cell_type
    temperatures: Mapping[str, Mapping[str, float]]
    """by cell type, then by the probabilities they calibrate: raw, group, balanced"""
    prior_used: bool  # whether the plate design was enabled, and found in the screen
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    notices: Sequence[tuple[str, str]]  # warnings, each with its step first

    @property
    def calibrated(self) -> bool:
        """Whether the temperature of the confidences shown was fitted for every cell type; one that could not be fitted is 1."""
        shown = "balanced" if self.prior_used else "raw"
        fitted = [kinds.get(shown, 1) != 1 for kinds in self.temperatures.values()]
        return bool(fitted) and all(fitted)


def render_report(
    report: Report,
    history: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[Any, bytes]],
    pictures_of: Score | None,
    pictures_note: str | None,
) -> str:
    """The page of a training run as HTML.

    Args:
        report: its content.
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
    predicted = set(predictions.loc[predictions["score"] == "unlabelled", "id_code"])
    unlabelled = [
        plate
        for plate in report.screen.plates
        if not plate.labelled or any(well.id_code in predicted for well in plate.wells)
    ]
    mapped = [
        plate
        for of_score in (unlabelled, report.holdout.plates)
        for plate in sorted(of_score, key=lambda plate: (plate.experiment, natural_key(plate.plate)))
    ]
    imaged, standardised = plate_statistics(
        report.screen.model_copy(update={"plates": plates}), report.config.standardise
    )
    channels = report.screen.channels
    first = "Pretraining" if report.config.mean_teacher.enabled else "Training"
    curves = {
        first: learning_curves.draw_pretrain(history, first),
        "Mean teacher, by cell type": learning_curves.draw_mean_teacher(history, cell_types),
    }
    return _render(
        "report_page.html.j2",
        report,
        plates,
        cell_types=cell_types,
        blocks=_score_blocks(report, cell_types),
        titles=reliability.TITLES,
        kinds=KINDS,
        not_validated=_not_validated(report.metrics["folds"]),
        roles={"oof": "out of fold"},
        curves=[(title, Markup(svg)) for title, svg in curves.items() if svg],
        maps=_plate_maps(report, mapped),
        reliability=Markup(reliability.draw(predictions, report.prior_used) or ""),
        statistics=Markup(draw_statistics(plates, imaged, standardised, cell_types, channels, domain)),
        spread=channel_spread(plates, imaged[0], cell_types),
        pictures=[(well, base64.b64encode(png).decode()) for well, png in pictures],
        pictures_of=pictures_of,
        pictures_note=pictures_note,
        domain=domain,
        strip_px=min(1010, 144 * (len(channels) + 1)) if len(channels) > 1 else 144,
        **_confusions(predictions),
    )


def render_prediction(report: Report, plates: pd.DataFrame, wells: pd.DataFrame) -> str:
    """The page of new plates as HTML, with a row a plate from `plate_quality` and a row a well: id_code, role, look_at."""
    records = report.holdout.plates
    cell_types = list(dict.fromkeys(plate.cell_type for plate in records))
    predicted = {str(row.id_code): row for row in report.predictions.itertuples(index=False)}
    marked = wells[wells["look_at"] != ""]
    channels = report.holdout.channels
    plates = plates.copy()
    for worst, measure in (("min", "sharpness"), ("max", "saturated")):
        values = by_channel(plates, measure, channels)
        plates[measure] = values.agg(worst, axis=1)
        plates[f"{measure}_channel"] = values.dropna(how="all").agg(f"idx{worst}", axis=1)
    return _render(
        "prediction_page.html.j2",
        report,
        records,
        model=report.screen.model,
        cell_types=cell_types,
        classified=len(predicted),
        unsure=int((report.predictions["confidence"] < UNSURE).sum()),
        table=score_table(report.predictions, cell_types),
        balanced=_shown_balance(report, "holdout"),
        roles={"holdout": "new plates"},
        maps=_plate_maps(report, records, set(marked["id_code"])),
        rows=plates.astype(object).where(plates.notna(), None).to_dict("records"),
        drifting=report.metrics["quality"]["plates_that_drift"],
        blurred_plates=report.metrics["quality"]["blurred_plates"],
        marked=[(well, predicted.get(str(well.id_code))) for well in marked.head(SHOWN_WELLS).itertuples()],
        more_marked=max(0, len(marked) - SHOWN_WELLS),
        limit=LIMIT,
        blurred=BLURRED_PLATE,
        nuclei=None if (nuclei := nuclei_channel(channels)) is None else channels[nuclei],
        saturation=saturation_level(functools.reduce(np.add, (plate.histograms.array for plate in records))),
        rescaled=any(plate.rescaled for plate in records),
    )


def environment(package: str) -> Environment:
    """The Jinja environment of the templates in a package's folder; values are escaped in HTML only.

    Filters: `pct` (a fraction in percent), `count` (a number with thousands separators, and the noun it counts if given),
    `plural` (of a noun), `duration` (seconds in words).
    """
    found = Environment(
        loader=PackageLoader(package, "."),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(pct=_percent, count=_count, plural=_plural, duration=_duration)
    return found


def _render(template: str, report: Report, plates: Sequence[PlateRecord], **context: Any) -> str:
    """Renders a page that counts these plates."""
    edges = (0.0, *plate_map.EDGES, 1.0)
    legend = zip(plate_map.COLOURS, edges[:-1], edges[1:], strict=True)
    page = environment("components.core.evaluation").get_template(template)
    word = report.config.screen.perturbation_name
    return page.render(
        report=report,
        experiments=len({plate.experiment for plate in plates}),
        plates=len(plates),
        wells=sum(len(plate.wells) for plate in plates),
        sites=sum(len(well.sites) for plate in plates for well in plate.wells),
        controls=any(well.role != "treatment" for plate in plates for well in plate.wells),
        channels=report.holdout.channels,
        durations=_durations(report.lineage),
        word=word,
        heading=word if word != word.lower() else word.capitalize(),
        stage_words={
            "raw": "arg-max over all treatments",
            "group": f"restricted to the plate's {word} group",
            "assigned": f"balanced, one well per {word} and plate",
        },
        unsure_below=UNSURE,
        unequal=UNEQUAL,
        map_legend=[(colour, f"{low:g}–{high:g}") for colour, low, high in legend],
        groups=lambda numbers: [chr(ord("A") + g) if g < 26 else str(g) for g in numbers],
        **context,
    )


def _score_blocks(report: Report, cell_types: Sequence[str]) -> list[dict[str, Any]]:
    """For each score with truth its accuracies, and the fractions of wells that confidence thresholds keep."""
    return [
        {
            "score": score,
            "table": score_table(known, cell_types),
            "balanced": _shown_balance(report, score),
            "explanation": explanation(score, report.config),
            "wells": len(known),
            "experiments": known["experiment"].nunique(),
            "kept": kept_above(known["confidence"], correct(known)["assigned"], THRESHOLDS),
        }
        for score in SCORES
        if not (known := scored(report.predictions, score)).empty
    ]


def _shown_balance(report: Report, score: Score) -> Mapping[str, Mapping[str, float]] | None:
    """Balanced accuracies of a score by stage and cell type; None if they would say the same as top-1."""
    found: Mapping[str, Mapping[str, float]] = report.metrics.get("balanced_accuracy", {}).get(score, {})
    return found if labels_are_unequal(report.metrics, score) else None


def explanation(score: Score, config: RunConfig) -> str:
    """What a score's numbers mean in a run of this configuration."""
    if score != "out_of_fold":
        return _EXPLANATIONS[score]
    rest = (
        "checkpoints were selected on them, so this is slightly optimistic."
        if config.selects_checkpoints
        else "the last epoch of training was kept, so nothing was selected on them."
    )
    return f"{_EXPLANATIONS[score]}; {rest}"


def _not_validated(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    by_type: dict[str, list[str]] = {}
    for fold in folds:
        for name in fold["not_validated"]:
            by_type.setdefault(name, []).append(str(fold["fold"]))
    return [f"{name} in fold{'s' if len(ns) > 1 else ''} {', '.join(ns)}" for name, ns in by_type.items()]


def _confusions(predictions: pd.DataFrame) -> dict[str, Any]:
    """The worst perturbations, or all if few, in the score with the most wells: an experiment may have one well of each."""
    best = max(SCORES, key=lambda score: len(scored(predictions, score)))
    wells = scored(predictions, best)
    recall = recall_by_perturbation(wells)
    labels = sorted({*wells["truth"], *wells["perturbation"]}, key=natural_key)
    few = 0 < len(labels) <= FEW_LABELS
    return {
        "confused_in": None if wells.empty else best,
        "few_labels": few,
        "labels": labels,
        "matrix": _matrix(wells, labels) if few else [],
        "confusions": worst_perturbations(wells, None if few else WORST),
        "always_right": int((recall["assigned"] == 1).sum()),
        "labels_seen": len(recall),
    }


def _matrix(wells: pd.DataFrame, labels: list[str]) -> list[tuple[str, int, list[float]]]:
    """For each true label its wells, and the fractions of them that are predicted as each of the labels."""
    counts = pd.crosstab(wells["truth"], wells["perturbation"]).reindex(columns=labels, fill_value=0)
    rows = counts.reindex([label for label in labels if label in counts.index])
    return [(str(label), int(row.sum()), (row / row.sum()).tolist()) for label, row in rows.iterrows()]


def _plate_maps(report: Report, plates: Sequence[PlateRecord], marked: Container[str] = ()) -> list[dict[str, Any]]:
    """By experiment: the maps of its plates, its arrangement, number of unsure wells and accuracy; `marked` wells get a frame."""
    if not plates:
        return []
    extent = plate_map.plate_extent(plates)
    wide = extent[3] - extent[2] >= 24  # columns of a plate of 1536 wells
    arrangements = {entry["experiment"]: entry for entry in report.arrangements}
    predicted = dict(list(report.predictions.groupby("experiment")))
    held_out = {plate.experiment for plate in report.holdout.plates}
    found = []
    for experiment in dict.fromkeys(plate.experiment for plate in plates):
        arrangement = arrangements.get(experiment)
        groups = (arrangement["groups"] if arrangement else None) or []
        wells = predicted.get(experiment, report.predictions[:0])
        rows = {str(row.id_code): row for row in wells.itertuples(index=False)}
        members = [plate for plate in plates if plate.experiment == experiment]
        known = scored(wells)
        score: Score = "holdout" if experiment in held_out else "unlabelled"
        found.append({
            "experiment": experiment,
            "wide": wide,
            "title": None if report.screen.model else reliability.TITLES[score],
            "arrangement": arrangement,
            # Groups are in plate order.
            "plates": [
                (plate.plate, groups[n] if n < len(groups) else None, Markup(plate_map.draw(plate, rows, extent, marked)))
                for n, plate in enumerate(members)
            ],
            "wells": len(wells),
            "unsure": int((wells["confidence"] < UNSURE).sum()),
            "accuracy": None if known.empty else float(correct(known)["assigned"].mean()),
        })  # fmt: skip
    return found


def _durations(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By step: its number of `tasks`, their `seconds` in all, the `longest`, and its `share` of the longest step."""
    tasks = pd.DataFrame(lineage.get("steps", []), columns=["step", "seconds"])
    by_step = tasks.groupby("step", sort=False)["seconds"]
    table = pd.DataFrame({"seconds": by_step.sum(), "longest": by_step.max(), "tasks": by_step.size()})
    table["share"] = (table["seconds"] / table["seconds"].max()).fillna(0.0)
    return [{str(name): value for name, value in row.items()} for row in table.reset_index().to_dict("records")]


def _percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent; 100.0 only if it is exactly one, 0.0 only if exactly zero."""
    shown = f"{100 * fraction:.{digits}f}"
    step = 10.0**-digits
    if fraction < 1 and float(shown) >= 100:
        return f"{100 - step:.{digits}f}"
    if fraction > 0 and float(shown) <= 0:
        return f"{step:.{digits}f}"
    return shown


def _count(number: int, noun: str = "") -> str:
    """`1,234`, or `1,234 wells` with the noun `well`."""
    return f"{number:,}" if not noun else f"{number:,} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    if noun[-1:] == "y" and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
