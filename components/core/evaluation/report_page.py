"""The report as one self-contained HTML page: figures inline, no script needed, nothing fetched. Data in, text out.

The words and the layout are in report_page.html.j2; here is what the page says of the numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from components.core.config import CHANNELS, RunConfig
from components.core.evaluation.confusions import recall_counts, worst_sirnas
from components.core.evaluation.figures import learning_curves, plate_map, plate_statistics, reliability
from components.core.evaluation.named_wells import SCORES, STAGES, NamedWell, Score, scored
from components.core.evaluation.plate_statistics import batch_effects
from components.core.evaluation.plate_statistics import plate_statistics as compute_statistics
from components.core.evaluation.quality.plate_confidence import UNSURE
from components.core.evaluation.reliability import kept_above
from components.core.evaluation.scores import score_table
from components.core.storage.manifest import Manifest, PlateRecord

WORST = 15
"""Rows of the confusion table."""
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
TITLES: dict[Score, str] = {"out_of_fold": "Out of fold", "unlabelled": "Unlabelled", "holdout": "Holdout"}
KINDS: dict[Score, str] = {"out_of_fold": "", "unlabelled": "transductive", "holdout": "inductive"}
EXPLANATIONS: dict[Score, str] = {
    "out_of_fold": "Labelled wells, named only by models that never saw their labels; checkpoints were selected on "
    "them, so expect this to be slightly optimistic.",
    "unlabelled": "Wells whose images took part in training without labels; their truth was read by this table alone.",
    "holdout": "Experiments that no step but prediction read, not even as images: what to expect of a new batch.",
}
STAGE_EXPLANATIONS = {
    "raw": "arg-max over all treatments",
    "group": "restricted to the plate's siRNA group",
    "assigned": "balanced, one well per siRNA and plate",
}


@dataclass(frozen=True)
class Picture:
    """A well's strip of images, as PNG bytes."""

    well: NamedWell
    png: bytes


@dataclass(frozen=True)
class Notice:
    """Something to look at, and which step or file said it."""

    source: str
    message: str


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    config: RunConfig
    screen: Manifest
    holdout: Manifest
    wells: Mapping[Score, Sequence[NamedWell]]
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    arrangements: Sequence[Mapping[str, Any]]
    """experiments of assign.json, each with its cell_type"""
    temperatures: Mapping[str, Mapping[str, float]]
    """by cell type, then by the probabilities they calibrate: raw, group, ..."""
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
    screen, cell_types = report.screen, _cell_types(report)
    page = page_environment().get_template("report_page.html.j2")
    return page.render(
        report=report,
        cell_types=cell_types,
        counts=_counts(report),
        blocks=_score_blocks(report, cell_types),
        titles=TITLES,
        kinds=KINDS,
        stage_words=STAGE_EXPLANATIONS,
        not_validated=_not_validated(report.metrics["folds"]),
        curves=[
            (title, Markup(svg))
            for title, svg in (
                ("Pretraining", learning_curves.draw_pretrain(report.history)),
                ("Mean teacher, by cell type", learning_curves.draw_mean_teacher(report.history, cell_types)),
            )
            if svg
        ],
        maps=_plate_maps(report),
        map_legend=map_legend(),
        unsure_below=UNSURE,
        reliability=Markup(reliability.draw(report.wells) or ""),
        kept=_kept(report),
        **_statistics(report, cell_types),
        **_confusion(report, cell_types),
        pictures=[(p, base64.b64encode(p.png).decode()) for p in report.pictures],
        channels=channel_names(screen.channels),
        durations=durations(report.lineage),
        config_yaml=report.config.dump(),
        groups=lambda numbers: [chr(ord("A") + g) if g < 26 else str(g) for g in numbers],
    )


def page_environment() -> Environment:
    """Where the pages' templates are, and how numbers look on them."""
    environment = Environment(
        loader=PackageLoader("components.core.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(pct=_percent, count=lambda n: f"{n:,}", duration=_duration)
    return environment


def _cell_types(report: Report) -> list[str]:
    """In the configuration's order, then any that only the manifests name."""
    found = [plate.cell_type for plate in (*report.screen.plates, *report.holdout.plates)]
    return [name for name in dict.fromkeys((*report.config.screen.cell_types, *found)) if name in found]


def _counts(report: Report) -> dict[str, int]:
    plates = (*report.screen.plates, *report.holdout.plates)
    return {
        "experiments": len({plate.experiment for plate in plates}),
        "plates": len(plates),
        "wells": sum(len(plate.wells) for plate in plates),
        "sites": sum(len(well.sites) for plate in plates for well in plate.wells),
        "treatments": len(report.screen.vocabulary.treatments),
    }


def _score_blocks(report: Report, cell_types: Sequence[str]) -> list[dict[str, Any]]:
    """One block of the accuracy table a score that has truth, the most demanding last."""
    return [
        {
            "score": score,
            "table": table,
            "explanation": EXPLANATIONS[score],
            "wells": table["raw"]["overall"].wells,
            "experiments": len({w.experiment for w in scored(report.wells[score])}),
        }
        for score in SCORES
        if (table := score_table(report.wells.get(score, ()), cell_types))
    ]


def _not_validated(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    by_type: dict[str, list[str]] = {}
    for fold in folds:
        for name in fold["not_validated"]:
            by_type.setdefault(name, []).append(str(fold["fold"]))
    return [f"{name} in fold{'s' if len(ns) > 1 else ''} {', '.join(ns)}" for name, ns in by_type.items()]


def _plate_maps(report: Report) -> list[dict[str, Any]]:
    """Unlabelled experiments, then held-out ones, each with its plates."""
    shown: list[tuple[Score, Any]] = [("unlabelled", p) for p in report.screen.plates if not p.labelled]
    shown += [("holdout", p) for p in report.holdout.plates]
    shown.sort(key=lambda pair: (pair[0] == "holdout", pair[1].experiment, pair[1].plate))  # groups are in plate order
    named = {well.id_code: well for score in ("unlabelled", "holdout") for well in report.wells.get(score, ())}
    return plate_maps(shown, named, report.arrangements)


def plate_maps(
    shown: Sequence[tuple[Score, PlateRecord]],
    named: Mapping[str, NamedWell],
    arrangements: Sequence[Mapping[str, Any]],
    marked: Container[str] = (),
) -> list[dict[str, Any]]:
    """What the page shows of each experiment: its plates' maps, arrangement, unsure wells and accuracy.

    Args:
        shown: plates in their order, those of an experiment together, each with its score.
        named: the named wells by id_code.
        arrangements: experiments of assign.json.
        marked: id_codes of wells that get a frame.
    """
    if not shown:
        return []
    extent = plate_map.plate_extent([plate for _, plate in shown])
    arrangement = {entry["experiment"]: entry for entry in arrangements}
    experiments: dict[str, dict[str, Any]] = {}
    for score, plate in shown:
        entry = experiments.setdefault(
            plate.experiment,
            {
                "experiment": plate.experiment,
                "score": score,
                "arrangement": arrangement.get(plate.experiment),
                "plates": [],
                "wells": [],
            },
        )
        groups = entry["arrangement"]["groups"] if entry["arrangement"] else None
        group = groups[len(entry["plates"])] if groups and len(entry["plates"]) < len(groups) else None
        entry["plates"].append((plate.plate, group, Markup(plate_map.draw(plate, named, extent, marked))))
        entry["wells"] += [named[w.id_code] for w in plate.wells if w.id_code in named]
    for entry in experiments.values():
        entry["low"] = sum(w.confidence < UNSURE for w in entry["wells"])
        known = scored(entry["wells"])
        entry["accuracy"] = sum(w.correct_at("assigned") for w in known) / len(known) if known else None
    return list(experiments.values())


def map_legend() -> list[tuple[str, str]]:
    """Colours of the confidence classes, and their bounds in words."""
    edges = (0.0, *plate_map.EDGES, 1.0)
    return [
        (colour, f"{low:g}–{high:g}")
        for colour, low, high in zip(plate_map.COLOURS, edges[:-1], edges[1:], strict=True)
    ]


def _kept(report: Report) -> list[dict[str, Any]]:
    """Share of wells and accuracy above confidence thresholds, by score."""
    return [
        {
            "score": score,
            "rows": kept_above([w.confidence for w in known], [w.correct_at("assigned") for w in known], THRESHOLDS),
        }
        for score in SCORES
        if (known := scored(report.wells.get(score, ())))
    ]


def _statistics(report: Report, cell_types: Sequence[str]) -> dict[str, Any]:
    plates = (*report.screen.plates, *report.holdout.plates)
    statistics = compute_statistics(plates, report.config.standardise.domain)
    drawn = plate_statistics.draw(statistics, cell_types, report.config.standardise.domain)
    return {"statistics": Markup(drawn), "effects": batch_effects(statistics, cell_types)}


def _confusion(report: Report, cell_types: Sequence[str]) -> dict[str, Any]:
    """The worst siRNAs over the score with the most scored wells: a siRNA has only one well an experiment."""
    best = max(SCORES, key=lambda score: len(scored(report.wells.get(score, ()))))
    wells = scored(report.wells.get(best, ()))
    always, seen = recall_counts(wells)
    return {
        "confused_in": best if wells else None,
        "confusions": worst_sirnas(wells, cell_types, WORST),
        "always_right": always,
        "sirnas_seen": seen,
    }


def channel_names(channels: int) -> Sequence[str]:
    """What the page calls the channels."""
    return CHANNELS if channels == len(CHANNELS) else [f"channel {c + 1}" for c in range(channels)]


def durations(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds by step: sum over its tasks, and the longest."""
    steps: dict[str, dict[str, Any]] = {}
    for task in lineage.get("steps", []):
        entry = steps.setdefault(task["step"], {"step": task["step"], "seconds": 0.0, "longest": 0.0, "tasks": 0})
        entry["seconds"] += task["seconds"]
        entry["longest"] = max(entry["longest"], task["seconds"])
        entry["tasks"] += 1
    longest = max((entry["seconds"] for entry in steps.values()), default=0.0)
    return [{**entry, "share": entry["seconds"] / longest if longest else 0.0} for entry in steps.values()]


def _percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent; 100.0 only when it is exactly one, 0.0 only when exactly nothing."""
    shown = f"{100 * fraction:.{digits}f}"
    step = 10.0**-digits
    if fraction < 1 and float(shown) >= 100:
        return f"{100 - step:.{digits}f}"
    if fraction > 0 and float(shown) <= 0:
        return f"{step:.{digits}f}"
    return shown


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


assert tuple(STAGE_EXPLANATIONS) == STAGES, "every stage is explained"
