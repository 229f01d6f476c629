"""The growth chart: accuracy of every rung on a simulated screen, beside the method's published curve.

`run_growth` trains the rungs, seed by seed, and writes growth.json and growth.png. The truth of a simulated screen is read in
this module and in no step.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from components.core.config import RunConfig
from components.core.evaluation.figures.growth_chart import Point, draw_growth
from components.core.files import write_atomically
from components.core.storage.object_store import ObjectStore
from pipelines.images.code_version import code_version
from pipelines.options import console_of_terminal
from pipelines.studies.rungs import Rung, rungs
from pipelines.studies.study import Scores, Study, StudyCase, StudyTask, opened_study, study_seeds, summary

SCHEMA = 1
LAST = "folds"
ASSIGNED = "assigned"
PUBLISHED_END = 0.996
"""Five folds and post-processing, public score of the method's authors."""
PAIRS = {
    "plate domain over experiment domain": ("plate", "experiment"),
    "ArcFace over softmax": ("arcface", "plate"),
    "mean teacher over ArcFace": ("mean_teacher", "arcface"),
    "mean teacher and pseudo-labels over ArcFace": ("pseudo_labels", "arcface"),
    "second backbone over one": ("dual_pseudo_labels", "pseudo_labels"),
}


@dataclass(frozen=True)
class RungRun:
    """One rung with one seed.

    Attributes:
        truth: truth.csv of the simulated screen.
        predictions: output folder of assign by cell type.
        tasks: all tasks of the run.
        added: the tasks that no rung before has.
    """

    rung: Rung
    seed: int
    truth: Path
    predictions: Mapping[str, Path]
    tasks: frozenset[StudyTask]
    added: frozenset[StudyTask]


@dataclass
class Growth:
    """The scores of all rungs so far; scores are `overall`, cell types, `assigned` and `seconds` of the tasks added."""

    config: RunConfig
    seeds: Sequence[int]
    ladder: Sequence[Rung]
    lineage: Mapping[str, Any]
    scores: Scores = field(default_factory=Scores)

    def route(self, name: str) -> list[Rung]:
        """The rungs of a route, in order."""
        return [rung for rung in self.ladder if rung.route == name]

    def gains(self) -> dict[str, dict[str, float]]:
        """Paired gains by seed, if both rungs are known."""
        pairs = {pair: (self.scores.of(after), self.scores.of(before)) for pair, (after, before) in PAIRS.items()}
        return {
            pair: {str(seed): late[seed] - early[seed] for seed in self.seeds if seed in late and seed in early}
            for pair, (late, early) in pairs.items()
        }

    def write(self, out: Path) -> None:
        """Writes growth.json, and growth.png once every rung has a seed, each atomically."""
        content = {
            "schema": SCHEMA,
            "rungs": [self._entry(rung) for rung in self.route("standardise")],
            "adabn": [self._entry(rung) for rung in self.route("adabn")],
            "asides": [self._entry(rung) for rung in self.route("aside")],
            "assigned": summary(self.scores.of(LAST, ASSIGNED), "seed"),
            "paired_gains": self.gains(),
            "seeds": list(self.seeds),
            "config": json.loads(self.config.model_dump_json()),
            **self.lineage,
        }
        write_atomically(out / "growth.json", json.dumps(content, indent=1) + "\n")
        if all(self.scores.of(rung.name) for rung in self.ladder):
            chart, adabn = (
                [
                    Point(rung.label, list(self.scores.of(rung.name).values()), rung.published)
                    for rung in self.route(name)
                ]
                for name in ("standardise", "adabn")
            )
            end = Point("folds +\nassignment", list(self.scores.of(LAST, ASSIGNED).values()), PUBLISHED_END)
            picture = io.BytesIO()
            draw_growth(chart, adabn, end).savefig(picture, dpi=160, metadata={"Software": None})
            write_atomically(out / "growth.png", picture.getvalue())

    def _entry(self, rung: Rung) -> dict[str, Any]:
        rows = {seed: self.scores.row(rung.name, seed) for seed in self.scores.of(rung.name)}
        return {
            "name": rung.name,
            **summary(self.scores.of(rung.name), "seed"),
            "cell_types": {
                str(seed): {name: value for name, value in row.items() if name not in (ASSIGNED, "balanced", "seconds")}
                for seed, row in rows.items()
            },
            "seconds": round(sum(row["seconds"] for row in rows.values()), 1),
            "config_difference": {name: list(sides) for name, sides in rung.difference.items()},
            "published": rung.published,
        }

    def table(self) -> Table:
        """The rungs with their means, deviations and seeds."""
        table = Table(title="Top-1 on wells of unlabelled experiments", title_justify="left")
        table.add_column("rung")
        for heading in ("mean", "sd", *(f"seed {seed}" for seed in self.seeds), "published", "minutes"):
            table.add_column(heading, justify="right")

        def add(name: str, values: Mapping[int, float], published: float | None, minutes: str) -> None:
            found = summary(values, "seed")
            accuracies = (found["mean"], found["sd"], *(values.get(seed) for seed in self.seeds), published)
            table.add_row(name, *("" if value is None else f"{value:.3f}" for value in accuracies), minutes)

        for rung in self.ladder:
            if rung.route != "standardise" and rung is self.route(rung.route)[0]:
                table.add_section()
            seconds = sum(self.scores.of(rung.name, "seconds").values())
            add(rung.title, self.scores.of(rung.name), rung.published, f"{seconds / 60:.1f}" if seconds else "")
        table.add_section()
        add("folds, assigned", self.scores.of(LAST, ASSIGNED), PUBLISHED_END, "")
        return table


def run_growth(config: RunConfig, seeds: Sequence[str], out: Path) -> None:
    """Trains and scores every rung for every seed, and prints the scores; finished tasks below `out` are reused.

    Args:
        config: with everything on, the last rung.
        seeds: values of --seeds; each changes the simulated screen and the training.
        out: folder of growth.json, growth.png and the work.

    Raises:
        InputError: a configuration without a part that a rung adds, a folder of another one, or no object store.
        StepError: a task failed; finished tasks are kept.
    """
    numbers, ladder = study_seeds(seeds), rungs(config)
    ObjectStore(config.store.address).check()
    console, described = console_of_terminal(), json.loads(config.model_dump_json())
    del described["seed"]  # the rungs have seeds of their own, and more of them may be added
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    growth = Growth(config, numbers, ladder, {"code_version": code_version(), "started": started})

    def scored(run: RungRun) -> None:
        _score(growth, run, console)
        growth.write(out)

    with opened_study(out, described, os.cpu_count() or 1, console) as study:
        runs = [run for seed in numbers for run in _rung_runs(study, ladder, seed)]
        study.run(config, [StudyCase(run.tasks, partial(scored, run)) for run in runs], growth.table)
    console.print(growth.table())
    for pair, gains in growth.gains().items():
        shown = ", ".join(f"{gain:+.3f} (seed {seed})" for seed, gain in gains.items())
        console.print(f"{pair}: {shown}", highlight=False, soft_wrap=True)
    console.print(f"chart: {(out / 'growth.png').resolve()}", soft_wrap=True, highlight=False)


def _rung_runs(study: Study, ladder: Sequence[Rung], seed: int) -> list[RungRun]:
    """Adds the tasks of all rungs with one seed."""
    found: list[RungRun] = []
    before: frozenset[StudyTask] = frozenset()
    for rung in ladder:
        label, config = f"seed {seed}, {rung.name}: ", rung.config.model_copy(update={"seed": seed})
        simulated = study.simulate(config, label)
        made = study.add_training(config, simulated, label)
        predictions = {
            str(task.cell_type): own.path("predictions") for task, own in made.items() if task.step == "assign"
        }
        tasks = frozenset([simulated, *made.values()])
        found.append(RungRun(rung, seed, simulated.path("out") / "truth.csv", predictions, tasks, tasks - before))
        before |= tasks
    return found


def _score(growth: Growth, run: RungRun, console: Console) -> None:
    truth = pd.read_csv(run.truth, dtype=str).set_index("id_code").iloc[:, 0]
    raw = accuracy(run.predictions, truth, "raw_perturbation")
    scores = growth.scores.row(run.rung.name, run.seed)
    scores |= {**raw, "seconds": math.fsum(spent.seconds for task in run.added if (spent := task.spent()))}
    text = f"seed {run.seed}  {run.rung.title}: {raw['overall']:.3f}"
    if run.rung.name == LAST:
        scores[ASSIGNED] = accuracy(run.predictions, truth, "perturbation")["overall"]
        text += f", after assignment: {scores[ASSIGNED]:.3f}"
    console.print(text, style="bold", highlight=False)


def accuracy(
    predictions: Mapping[str, Path], truth: pd.Series, column: str, table: str = "unlabelled.csv"
) -> dict[str, float]:
    """Well top-1 over all wells (`overall`), by cell type, and the mean over labels of the share that is right (`balanced`).

    Args:
        predictions: output folder of assign by cell type.
        truth: label by id_code.
        column: `raw_perturbation` before the prior, `perturbation` after assignment.
        table: the wells that are scored, a file of assign.
    """
    hits = {}
    for cell_type, folder in predictions.items():
        predicted = pd.read_csv(folder / table, dtype=str).set_index("id_code")[column]
        hits[cell_type] = predicted == truth[predicted.index]
    all_hits = pd.concat([*hits.values()])
    balanced = all_hits.groupby(truth[all_hits.index]).mean().mean()
    return {"overall": float(all_hits.mean()), "balanced": float(balanced)} | {
        name: float(hit.mean()) for name, hit in hits.items()
    }
