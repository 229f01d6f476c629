"""Which named wells, which column and which truth every rung and seed is scored from. No step runs."""

import csv
import io
import json

import pytest
from rich.console import Console

from components.core.config import RunConfig
from pipelines.studies.growth import run as growing
from pipelines.studies.growth.rungs import rungs

SEEDS = (4, 9)
CELL_TYPES = ("HUVEC", "U2OS")
WELLS = {"HUVEC": 200, "U2OS": 100}
COLUMNS = ("raw_sirna", "group_sirna", "sirna")


@pytest.fixture(scope="module")
def ladder():
    return rungs(RunConfig.load("growth", [f"screen.cell_types=[{', '.join(CELL_TYPES)}]"]))


@pytest.fixture
def grown(ladder, tmp_path, monkeypatch):
    """A growth whose tasks are answered with names; growth.json, and the right names by seed, rung, column and cell type.

    No two rungs, seeds or columns have as many right names, and seeds have different truths.
    """
    runs, hits = [], {}

    def add_training(plan, config):
        runs.append((config, real(plan, config)))
        return runs[-1][1]

    def write(path, columns, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

    def run_tasks(tasks, workplace, workers, finished, *_):
        for config, run in runs:
            rung = next(r.name for r in ladder if r.config.model_copy(update={"seed": config.seed}) == config)
            right = f"sirna_{config.seed}"
            wells = [f"{kind}_{n}" for kind in CELL_TYPES for n in range(WELLS[kind])]
            write(workplace.path(run.truth), ["id_code", "sirna"], [(well, right) for well in wells])
            for column in COLUMNS:
                hits[config.seed, rung, column] = {"HUVEC": len(hits) + 1, "U2OS": (len(hits) + 1) // 2}
            for kind, output in run.predictions.items():
                counts = [hits[config.seed, rung, column][kind] for column in COLUMNS]
                rows = [
                    (f"{kind}_{n}", *(right if n < count else "sirna_0" for count in counts))
                    for n in range(WELLS[kind])
                ]
                write(workplace.path(output) / "unlabelled.csv", ["id_code", *COLUMNS], rows)
        for task in tasks:
            finished(task, 1.0, False)

    real = growing.add_training
    monkeypatch.setattr(growing, "add_training", add_training)
    monkeypatch.setattr(growing, "run_tasks", run_tasks)
    monkeypatch.setattr("pipelines.studies.growth.results.draw_growth", lambda *_: Picture())
    full = next(rung.config for rung in ladder if rung.name == "folds")
    growing.grow(full, SEEDS, tmp_path, 1, {}, Console(file=io.StringIO()))
    return json.loads((tmp_path / "growth.json").read_text()), hits


class Picture:
    """Drawing takes a second and is tested elsewhere."""

    def savefig(self, path, **_):
        path.write(b"")


def share(hits, seed, rung, column, kinds=CELL_TYPES):
    return sum(hits[seed, rung, column][kind] for kind in kinds) / sum(WELLS[kind] for kind in kinds)


def test_every_rung_is_scored_from_its_own_names_before_the_prior(grown, ladder):
    content, hits = grown
    entries = {entry["name"]: entry for entry in (*content["rungs"], *content["adabn"], *content["asides"])}
    assert entries.keys() == {rung.name for rung in ladder}
    for name, entry in entries.items():
        for seed in SEEDS:
            assert entry["per_seed"][str(seed)] == share(hits, seed, name, "raw_sirna")
            assert entry["cell_types"][str(seed)] == {
                "overall": share(hits, seed, name, "raw_sirna"),
                **{kind: share(hits, seed, name, "raw_sirna", [kind]) for kind in CELL_TYPES},
            }


def test_the_assigned_point_is_the_last_rungs_assigned_names(grown):
    content, hits = grown
    assert content["assigned"]["per_seed"] == {str(seed): share(hits, seed, "folds", "sirna") for seed in SEEDS}
