"""Scores of the rungs: accuracy of predictions, growth.json, growth.png and the table at the end. Files are written atomically.

The truth of a simulated screen is read here and nowhere else.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from components.core.config import RunConfig
from components.core.evaluation.figures.growth_chart import Point, draw_growth
from components.core.files import write_atomically
from pipelines.studies.growth.rungs import Rung

SCHEMA = 1
PUBLISHED_END = 0.996
"""Five folds and post-processing, public score of the method's authors."""
PAIRS = {
    "plate domain over experiment domain": ("plate", "experiment"),
    "ArcFace over softmax": ("arcface", "plate"),
    "mean teacher over ArcFace": ("mean_teacher", "arcface"),
    "mean teacher and pseudo-labels over ArcFace": ("pseudo_labels", "arcface"),
    "second backbone over one": ("dual_pseudo_labels", "pseudo_labels"),
}


@dataclass
class RungScores:
    """One rung so far: accuracies by seed, and compute seconds of the tasks that it added to the rungs before."""

    rung: Rung
    per_seed: dict[int, float] = field(default_factory=dict)
    cell_types: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The rung's entry in growth.json."""
        return {
            "name": self.rung.name,
            **_summary(self.per_seed),
            "cell_types": {str(seed): scores for seed, scores in self.cell_types.items()},
            "seconds": round(sum(self.seconds.values()), 1),
            "config_difference": {name: list(sides) for name, sides in self.rung.difference.items()},
            "published": self.rung.published,
        }


@dataclass
class Growth:
    """All rungs of a run."""

    config: RunConfig
    seeds: Sequence[int]
    measured: dict[str, RungScores]
    assigned: dict[int, float] = field(default_factory=dict)

    def route(self, name: str) -> list[RungScores]:
        """The rungs of a route, in order."""
        return [entry for entry in self.measured.values() if entry.rung.route == name]

    def gains(self) -> dict[str, dict[str, float]]:
        """Paired gains by seed, where both rungs are known."""
        found = {}
        for what, (after, before) in PAIRS.items():
            late, early = self.measured[after].per_seed, self.measured[before].per_seed
            found[what] = {str(seed): late[seed] - early[seed] for seed in self.seeds if seed in late and seed in early}
        return found

    def write(self, out: Path, lineage: Mapping[str, Any]) -> None:
        """Writes growth.json, and growth.png once every rung has a seed; each file replaces the one before whole."""
        content = {
            "schema": SCHEMA,
            "rungs": [entry.as_json() for entry in self.route("standardise")],
            "adabn": [entry.as_json() for entry in self.route("adabn")],
            "asides": [entry.as_json() for entry in self.route("aside")],
            "assigned": _summary(self.assigned),
            "paired_gains": self.gains(),
            "seeds": list(self.seeds),
            "config": json.loads(self.config.model_dump_json()),
            **lineage,
        }
        write_atomically(out / "growth.json", json.dumps(content, indent=1) + "\n")
        if all(entry.per_seed for entry in self.measured.values()) and self.assigned:
            figure = draw_growth(
                [_point(entry) for entry in self.route("standardise")],
                [_point(entry) for entry in self.route("adabn")],
                Point("folds +\nassignment", list(self.assigned.values()), PUBLISHED_END),
            )
            picture = io.BytesIO()
            figure.savefig(picture, dpi=160, metadata={"Software": None})
            write_atomically(out / "growth.png", picture.getvalue())

    def table(self) -> Table:
        """The rungs with their means, deviations and seeds."""
        table = Table(title="Top-1 on wells of unlabelled experiments", title_justify="left")
        table.add_column("rung")
        for heading in ("mean", "sd", *(f"seed {seed}" for seed in self.seeds), "published", "minutes"):
            table.add_column(heading, justify="right")
        for entry in self.measured.values():
            name = entry.rung.label.replace("\n", " ")
            if entry.rung.route == "adabn":
                name = f"AdaBN, {name}"
            if entry.rung.route != "standardise" and entry is self.route(entry.rung.route)[0]:
                table.add_section()
            minutes = f"{sum(entry.seconds.values()) / 60:.1f}" if entry.seconds else ""
            table.add_row(name, *_cells(entry.per_seed, self.seeds), _shown(entry.rung.published), minutes)
        table.add_section()
        table.add_row("folds, assigned", *_cells(self.assigned, self.seeds), _shown(PUBLISHED_END), "")
        return table


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


def _point(entry: RungScores) -> Point:
    return Point(entry.rung.label, list(entry.per_seed.values()), entry.rung.published)


def _summary(per_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean and sample standard deviation, null where seeds are too few for them."""
    values = list(per_seed.values())
    return {
        "mean": mean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "per_seed": {str(seed): value for seed, value in per_seed.items()},
    }


def _cells(per_seed: Mapping[int, float], seeds: Sequence[int]) -> list[str]:
    summary = _summary(per_seed)
    return [_shown(summary["mean"]), _shown(summary["sd"]), *(_shown(per_seed.get(seed)) for seed in seeds)]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
