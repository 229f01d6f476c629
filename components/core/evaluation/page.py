"""What the reports of a run and of new plates share: templates, plate maps, durations. Data in, HTML out.

A page is one self-contained HTML file: figures inline, no script needed, nothing fetched. Text and layout are in the
templates (*.html.j2): page is the frame, sections the parts that both reports show.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from components.core.config import CHANNELS, RunConfig
from components.core.evaluation.figures import plate_map
from components.core.evaluation.predictions import UNSURE, correct, scored
from components.core.storage.manifest import Manifest, PlateRecord

STAGE_EXPLANATIONS = {
    "raw": "arg-max over all treatments",
    "group": "restricted to the plate's siRNA group",
    "assigned": "balanced, one well per siRNA and plate",
}


@dataclass(frozen=True)
class Report:
    """What is reported of a run or of new plates.

    Attributes:
        config: the run's configuration.
        screen: manifest of the training and unlabelled experiments, or the reference that names the model of new plates.
        holdout: manifest of the held-out experiments, or of the new plates.
        predictions: a predictions table, see evaluation.predictions.
        arrangements: `experiments` of every assign.json, each with its cell_type.
        temperatures: by cell type, then by the probabilities they calibrate: raw, group, balanced.
        prior_used: whether the plate design took part in any prediction: enabled, and found in the screen.
        metrics: the content of metrics.json.
        lineage: the content of lineage.json.
        notices: warnings, each with the step that it comes from.
    """

    config: RunConfig
    screen: Manifest
    holdout: Manifest
    predictions: pd.DataFrame
    arrangements: Sequence[Mapping[str, Any]]
    temperatures: Mapping[str, Mapping[str, float]]
    prior_used: bool
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    notices: Sequence[tuple[str, str]]


def channel_names(channels: int) -> Sequence[str]:
    """The names of the channels; numbers if there are not six."""
    return CHANNELS if channels == len(CHANNELS) else [f"channel {c + 1}" for c in range(channels)]


def environment(package: str) -> Environment:
    """The Jinja environment of every text that the product writes from a template.

    Undefined names are errors; values are escaped in HTML templates only. Filters: `pct` (a fraction in percent), `count`
    (a number with thousands separators, and the noun it counts if given), `duration` (seconds in words).

    Args:
        package: the package whose folder holds the templates.
    """
    found = Environment(
        loader=PackageLoader(package, "."),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(pct=_percent, count=_count, duration=_duration)
    return found


def render_page(template: str, report: Report, plates: Sequence[PlateRecord], **context: Any) -> str:
    """Renders a page from its template.

    Args:
        template: file name in this folder.
        report: all templates read it.
        plates: those that the page counts.
        context: further variables of the template.
    """
    edges = (0.0, *plate_map.EDGES, 1.0)
    legend = zip(plate_map.COLOURS, edges[:-1], edges[1:], strict=True)
    page = environment("components.core.evaluation").get_template(template)
    return page.render(
        report=report,
        experiments=len({plate.experiment for plate in plates}),
        plates=len(plates),
        wells=sum(len(plate.wells) for plate in plates),
        sites=sum(len(well.sites) for plate in plates for well in plate.wells),
        channels=channel_names(report.holdout.channels),
        durations=durations(report.lineage),
        stage_words=STAGE_EXPLANATIONS,
        unsure_below=UNSURE,
        map_legend=[(colour, f"{low:g}–{high:g}") for colour, low, high in legend],
        groups=lambda numbers: [chr(ord("A") + g) if g < 26 else str(g) for g in numbers],
        **context,
    )


def plate_maps(
    report: Report, plates: Sequence[PlateRecord], titles: Mapping[str, str], marked: Container[str] = ()
) -> list[dict[str, Any]]:
    """The maps of each experiment's plates, with its arrangement, number of unsure wells and accuracy.

    Args:
        report: its predictions and arrangements are shown.
        plates: in their order, those of an experiment together.
        titles: a title by experiment; may lack some.
        marked: id_codes of wells that get a frame.
    """
    if not plates:
        return []
    extent = plate_map.plate_extent(plates)
    arrangement_of = {entry["experiment"]: entry for entry in report.arrangements}
    by_experiment = dict(list(report.predictions.groupby("experiment")))
    found = []
    for experiment in dict.fromkeys(plate.experiment for plate in plates):
        arrangement = arrangement_of.get(experiment)
        groups = (arrangement["groups"] if arrangement else None) or []
        wells = by_experiment.get(experiment, report.predictions[:0])
        rows = {str(row.id_code): row for row in wells.itertuples(index=False)}
        members = [plate for plate in plates if plate.experiment == experiment]
        known = scored(wells)
        found.append({
            "experiment": experiment,
            "title": titles.get(experiment),
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


def durations(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
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
    return f"{number:,}" if not noun else f"{number:,} {noun}{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
