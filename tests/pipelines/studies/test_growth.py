"""The growth chart on a screen and networks so small that rungs take a second, in a real store; and its scores."""

import itertools
import json
import subprocess
import time
from pathlib import Path

import cv2
import pandas as pd
import pytest

from components.core.config import RunConfig
from pipelines.studies import growth as growing
from pipelines.studies.rungs import rungs
from pipelines.studies.study import Study
from tests.pipelines.tiny_run import Cellsignal

CONFIG = """
name: tiny
screen: {cell_types: [HUVEC], image_size: 32}
folds: {count: 2}
simulate: {labelled: {HUVEC: 2}, unlabelled: {HUVEC: 1}, treatments_per_group: 3, positive_controls: 1, cell_diameter: 12}
backbones:
  - {name: a, stem: 4, second_stride: 2, entry: [4, 8], middle_blocks: 0, exit: [8, 8, 8]}
  - {name: b, stem: 4, second_stride: 2, entry: [4, 8], middle_blocks: 0, exit: [8, 8, 8]}
pretrain: {epochs: 1, batch_size: 8, learning_rates: [1.0e-3], milestones: []}
mean_teacher: {labelled_batch: 4, unlabelled_batch: 4, cycle_epochs: 1, cycles: 2, final_epochs: 0, ratio: {},
  pseudo_label_passes: 1}
embeddings: {enabled: false}
predict: {views: 1, batch_size: 16}
"""
RUNGS = ["baseline", "experiment", "plate", "arcface", "mean_teacher", "dual_pseudo_labels", "folds"]


class Command:
    """`cellsignal growth` in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.cellsignal = folder, folder / "out", Cellsignal(folder)
        (folder / "tiny.yaml").write_text(CONFIG)
        self.arguments = ("growth", "--config", "tiny.yaml", "--out", "out", "--store", "store", "--seeds", "7")

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.cellsignal(*self.arguments, *arguments)

    def done(self) -> dict[str, float]:
        """Finished tasks, and the time of each file."""
        return {file.parent.name: file.stat().st_mtime for file in self.out.glob("work/tasks/*/done.json")}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return Command(tmp_path_factory.mktemp("growth"))


@pytest.fixture(scope="module")
def grown(command):
    """Killed half-way, then run to its end: the tasks finished at the kill, the process, and growth.json."""
    process = command.cellsignal.start(*command.arguments)
    deadline = time.monotonic() + 120
    while len(command.done()) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    time.sleep(2.5)  # workers check for their parent every second
    before = command.done()
    done = command()
    assert done.returncode == 0, done.stderr
    return before, done, json.loads((command.out / "growth.json").read_text())


@pytest.mark.slow
def test_the_file_lists_all_rungs_in_order(grown):
    _, done, content = grown
    assert [rung["name"] for rung in content["rungs"]] == RUNGS
    adabn = [f"adabn_{name}" for name in ("experiment", "plate", "arcface", "mean_teacher")]
    assert [rung["name"] for rung in content["adabn"]] == adabn
    assert [rung["name"] for rung in content["asides"]] == ["both_arcface", "pseudo_labels"]
    for rung in (*content["rungs"], *content["adabn"], *content["asides"], content["assigned"]):
        assert list(rung["per_seed"]) == ["7"]
        assert rung["mean"] == rung["per_seed"]["7"]
        assert rung["sd"] is None, "one seed has no deviation"
    assert content["rungs"][3]["config_difference"] == {"head.kind": ["softmax", "arcface"]}
    assert len(content["paired_gains"]) == 5
    assert "ArcFace over softmax" in content["paired_gains"]
    assert "folds, assigned" in done.stdout


@pytest.mark.slow
def test_a_killed_growth_resumes_from_its_finished_tasks(command, grown):
    before, _, _ = grown
    after = command.done()
    assert len(before) >= 5
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_rungs_share_equal_tasks(command, grown):
    steps: dict[str, int] = {}
    for file in command.out.glob("work/tasks/*/done.json"):
        step = json.loads(file.read_text())["step"]
        steps[step] = steps.get(step, 0) + 1
    # Backbone a: four rungs, three of AdaBN and one of both in fold 0, one in fold 1; backbone b: two folds. Mean teachers
    # start from the ArcFace rungs' networks, and the last rung reads fold 0 of the rung before.
    assert steps == {
        "simulate": 1, "normalize": 1, "pretrain": 8 + 1 + 2, "finetune": 1 + 1 + 1 + 2, "pseudo_label": 1 + 2,
        "infer": 4 + 3 + 1 + 2, "ensemble": 13, "assign": 13,
    }  # fmt: skip


@pytest.mark.slow
def test_the_same_command_again_reuses_everything(command, grown):
    before, (_, _, written) = command.done(), grown
    image = cv2.imread(str(command.out / "growth.png"))
    assert image.shape == (800, 1600, 3)
    assert image.std() > 10
    done = command()
    assert done.returncode == 0, done.stderr
    assert command.done() == before
    assert json.loads((command.out / "growth.json").read_text())["rungs"] == written["rungs"]
    line = command.cellsignal.refused(*command.arguments, "--set", "pretrain.epochs=2")
    assert "holds results of another pretrain.epochs; use a new folder" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "1,x"), "--seeds x: expected whole numbers from 0"),
        (("--seeds", "7"), "--seeds: different numbers are expected, got [7, 7]"),
        (("--set", "head.kind=softmax"), "the configuration must be the last rung, with head.kind arcface"),
    ],
)
def test_bad_input_is_one_line(command, arguments, message):
    assert message in command.cellsignal.refused(*command.arguments, *arguments)


def test_a_failed_task_is_one_line_and_keeps_the_finished_ones(tmp_path):
    other = Command(tmp_path)
    line = other.cellsignal.refused(*other.arguments, "--set", "simulate.labelled={HUVEC: 2}", "--set", "folds.count=3")
    assert "folds.count is 3, but the screen has 2 labelled experiments that" in line
    assert [json.loads(f.read_text())["step"] for f in other.out.glob("work/tasks/*/done.json")] == ["simulate"]


SEEDS = (4, 9)
CELL_TYPES = ("HUVEC", "U2OS")
WELLS = {"HUVEC": 200, "U2OS": 100}
COLUMNS = ("raw_perturbation", "group_perturbation", "perturbation")


@pytest.fixture(scope="module")
def ladder():
    return rungs(RunConfig.load("growth", [f"screen.cell_types=[{', '.join(CELL_TYPES)}]"]))


@pytest.fixture
def scored(ladder, tmp_path, monkeypatch):
    """A growth whose tasks are replaced by predictions; growth.json, and the correct wells by seed, rung, column and cell type.

    No two rungs, seeds or columns have as many correct wells, and seeds have different truths.
    """
    runs, hits = [], {}

    def rung_runs(*arguments):
        found = real(*arguments)
        runs.extend(found)
        return found

    def write(path, columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(columns).to_csv(path, index=False)

    def run_tasks(study, config, cases, table):
        for run in runs:
            right = f"sirna_{run.seed}"
            wells = {kind: [f"{kind}_{n}" for n in range(WELLS[kind])] for kind in CELL_TYPES}
            write(run.truth, {"id_code": [*itertools.chain(*wells.values())], "sirna": right})
            for column in COLUMNS:
                hits[run.seed, run.rung.name, column] = {"HUVEC": len(hits) + 1, "U2OS": (len(hits) + 1) // 2}
            for kind, folder in run.predictions.items():
                counts = {column: hits[run.seed, run.rung.name, column][kind] for column in COLUMNS}
                predicted = {c: [right] * n + ["sirna_0"] * (WELLS[kind] - n) for c, n in counts.items()}
                write(folder / "unlabelled.csv", {"id_code": wells[kind], **predicted})
        for case in cases:
            case.score()

    real = growing._rung_runs
    monkeypatch.setattr(growing, "_rung_runs", rung_runs)
    monkeypatch.setattr(Study, "run", run_tasks)
    monkeypatch.setattr(growing, "draw_growth", lambda *_: Picture())
    full = next(rung.config for rung in ladder if rung.name == "folds")
    store = full.store.model_copy(update={"bucket": tmp_path.as_uri()})
    growing.run_growth(full.model_copy(update={"store": store}), [*map(str, SEEDS)], tmp_path)
    return json.loads((tmp_path / "growth.json").read_text()), hits


class Picture:
    """Drawing takes a second and is tested elsewhere."""

    def savefig(self, path, **_):
        path.write(b"")


def share(hits, seed, rung, column, kinds=CELL_TYPES):
    return sum(hits[seed, rung, column][kind] for kind in kinds) / sum(WELLS[kind] for kind in kinds)


def test_every_rung_is_scored_by_its_own_predictions_before_the_prior(scored, ladder):
    content, hits = scored
    entries = {entry["name"]: entry for entry in (*content["rungs"], *content["adabn"], *content["asides"])}
    assert entries.keys() == {rung.name for rung in ladder}
    for name, entry in entries.items():
        for seed in SEEDS:
            assert entry["per_seed"][str(seed)] == share(hits, seed, name, "raw_perturbation")
            assert entry["cell_types"][str(seed)] == {
                "overall": share(hits, seed, name, "raw_perturbation"),
                **{kind: share(hits, seed, name, "raw_perturbation", [kind]) for kind in CELL_TYPES},
            }
    # The assigned point is the last rung's accuracy after assignment.
    assert content["assigned"]["per_seed"] == {str(seed): share(hits, seed, "folds", "perturbation") for seed in SEEDS}
