"""A whole growth on a screen and networks so small that rungs take a second, in a real store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from pipelines.studies.growth.results import accuracy

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
    """`python -m pipelines.studies.growth` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self._environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        (folder / "tiny.yaml").write_text(CONFIG)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipelines.studies.growth", "--config", str(self.folder / "tiny.yaml")]
        return subprocess.Popen(
            [*command, "--out", str(self.out), "--seeds", "7", "--workers", "2", *arguments],
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def done(self) -> dict[str, float]:
        """Finished tasks and when they were."""
        found = self.out.glob("work/tasks/*/done.json")
        return {file.parent.name: file.stat().st_mtime for file in found}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return Command(tmp_path_factory.mktemp("growth"))


@pytest.fixture(scope="module")
def grown(command):
    """Killed half-way, then run to its end; what was finished at the kill."""
    process = command.start()
    deadline = time.monotonic() + 120
    while len(command.done()) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.5)  # workers look for their parent every second
    before = command.done()
    done = command()
    assert done.returncode == 0, done.stderr
    return before, done, json.loads((command.out / "growth.json").read_text())


def test_all_rungs_are_there_in_order_with_what_was_asked(grown):
    _, done, content = grown
    assert [rung["name"] for rung in content["rungs"]] == RUNGS
    assert [rung["name"] for rung in content["adabn"]] == [
        "adabn_experiment",
        "adabn_plate",
        "adabn_arcface",
        "adabn_mean_teacher",
    ]
    assert [rung["name"] for rung in content["asides"]] == ["both_arcface", "pseudo_labels"]
    for rung in (*content["rungs"], *content["adabn"], *content["asides"], content["assigned"]):
        assert list(rung["per_seed"]) == ["7"]
        assert rung["mean"] == rung["per_seed"]["7"]
        assert rung["sd"] is None, "one seed has no deviation"
    assert content["rungs"][3]["config_difference"] == {"head.kind": ["softmax", "arcface"]}
    assert set(content["paired_gains"]) == {
        "plate domain over experiment domain",
        "ArcFace over softmax",
        "mean teacher over ArcFace",
        "mean teacher and pseudo-labels over ArcFace",
        "second backbone over one",
    }
    assert "folds, assigned" in done.stdout


def test_a_killed_growth_goes_on_from_its_finished_tasks(command, grown):
    before, _, _ = grown
    after = command.done()
    assert len(before) >= 5
    assert {name: after[name] for name in before} == before


def test_rungs_share_the_tasks_that_do_not_differ(command, grown):
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


def test_scores_are_those_of_the_named_wells(command, grown):
    _, _, content = grown
    truth = next(command.out.glob("work/tasks/*/simulated/truth.csv"))
    tables = [
        folder / "predictions" for folder in command.out.glob("work/tasks/*") if (folder / "predictions").is_dir()
    ]
    possible = {accuracy({"HUVEC": table}, truth, "raw_sirna")["overall"] for table in tables}
    assert {rung["mean"] for rung in content["rungs"]} <= possible
    assert content["rungs"][0]["cell_types"]["7"].keys() == {"overall", "HUVEC"}


def test_the_chart_is_a_picture(command, grown):
    image = cv2.imread(str(command.out / "growth.png"))
    assert image.shape == (800, 1600, 3)
    assert image.std() > 10


def test_the_same_command_again_computes_nothing(command, grown):
    before = command.done()
    written = json.loads((command.out / "growth.json").read_text())
    done = command()
    assert done.returncode == 0, done.stderr
    assert command.done() == before
    again = json.loads((command.out / "growth.json").read_text())
    assert [rung["seconds"] for rung in again["rungs"]] == [rung["seconds"] for rung in written["rungs"]]
    assert again["rungs"] == written["rungs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "pretrain.epochs=2"), "holds results of another pretrain.epochs; use a new folder"),
        (("--seeds", "1,x"), "--seeds x: expected whole numbers from 0"),
        (("--seeds", "7"), "--seeds: different numbers are expected, got [7, 7]"),
        (("--set", "head.kind=softmax"), "the configuration must be the last rung, with head.kind arcface"),
    ],
)
def test_bad_input_is_one_line(command, grown, arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_failed_task_is_one_line_and_leaves_what_is_finished(command, tmp_path):
    other = Command(tmp_path)
    done = other("--set", "simulate.labelled={HUVEC: 1}")
    assert done.returncode == 2, done.stderr
    assert "folds.count is 2, but the screen has 1 labelled experiments" in done.stderr
    assert [json.loads(f.read_text())["step"] for f in other.out.glob("work/tasks/*/done.json")] == ["simulate"]
