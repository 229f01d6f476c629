"""The cycle in a bucket of a real object store: a first model, a new experiment, retraining, and promotion."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from components.core.config import RunConfig
from components.core.registry.champion import read_champion
from components.core.registry.published_models import fingerprints
from components.core.screen.simulation.plate_design import SimulationSettings
from components.core.screen.simulation.writer import simulate
from components.core.storage.object_store import ObjectStore
from tests.pipelines.retrain.cluster_lab import images, tables
from tests.pipelines.tiny_run import CONFIG, Cellsignal
from tests.seaweedfs import S3Server

BUCKET = "lab"
SIMULATED = "simulate: {labelled: {HUVEC: 5}, unlabelled: {HUVEC: 1}, treatments_per_group: 3, positive_controls: 1}"
HOLDOUT = ("HUVEC-01", "HUVEC-02")
FIRST, SECOND = ("HUVEC-03", "HUVEC-04"), "HUVEC-05"
UNLABELLED = "HUVEC-06"
PLATES = 4
SETTLED = ("--set", "promotion.margin=1", "--set", "promotion.cell_type_margin=1")
"""Whatever networks of one epoch predict."""


class Lab:
    """A simulated screen in a bucket, to which experiments are added one by one, and the command."""

    def __init__(self, folder: Path, store: ObjectStore, environment: Mapping[str, str]) -> None:
        self.folder, self.store, self.environment = folder, store, dict(environment)
        self.command = Cellsignal(folder)
        self.config = folder / "tiny.yaml"
        # One fold and one site a well, and training ends with pretrain, to save time.
        text = re.sub(r"simulate: .*", SIMULATED, CONFIG).replace("folds: {count: 2}", "folds: {count: 2, train: [0]}")
        text = text.replace("mean_teacher: {", "mean_teacher: {enabled: false, ")
        held = f"image_size: 16, sites: 1, holdout_experiments: [{', '.join(HOLDOUT)}]"
        self.config.write_text(f"{text.replace('image_size: 16', held)}embeddings: {{enabled: false}}\n")
        simulate(RunConfig.load(str(self.config)).section(SimulationSettings), folder / "simulated")
        self.screen = folder / "simulated" / "screen"
        self.experiments: list[str] = []

    def add(self, *experiments: str) -> None:
        """Adds experiments to the screen: their images, then the tables of all."""
        self.experiments += experiments
        files = images(self.screen, experiments)
        self.store.put_many((f"screen/{path.relative_to(self.screen)}", path.read_bytes()) for path in files)
        for name, content in tables(self.screen, tuple(self.experiments)).items():
            self.store.put(f"screen/{name}", content)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.command(*arguments, environment=self.environment)

    def retrain(self, *more: str) -> subprocess.CompletedProcess[str]:
        usual = ("--config", str(self.config), "--screen", f"s3://{BUCKET}/screen", "--out", str(self.folder / "runs"))
        in_bucket = ("--set", f"store.bucket={BUCKET}", "--set", "store.prefix=cs")
        return self("retrain", *usual, *in_bucket, *more)

    def packed(self) -> list[tuple[int, int]]:
        """Numbers of plates that each normalize packed and reused, in the order of the runs."""
        logs = sorted((self.folder / "runs").glob("*/*/run/log.txt"), key=lambda log: log.stat().st_mtime)
        found = [re.search(r"(\d+) plates packed, (\d+) reused", log.read_text()) for log in logs]
        return [(int(match[1]), int(match[2])) for match in found if match]


@pytest.mark.slow
def test_cycle_of_new_experiments_retraining_and_promotion(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.create_bucket(BUCKET)
    environment = s3_server.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lab = Lab(tmp_path, ObjectStore(f"s3://{BUCKET}"), environment)
    registry = ObjectStore(f"s3://{BUCKET}/cs")

    lab.add(*HOLDOUT, *FIRST, UNLABELLED)
    first = lab.retrain()
    assert first.returncode == 0, first.stderr
    assert "the first model" in first.stdout
    champion = read_champion(registry)
    assert champion is not None
    assert champion.now.generation == 1
    assert lab.packed() == [(5 * PLATES, 0)]

    # A new experiment, and a challenger that learned nothing: it is published, and the champion stays.
    lab.add(SECOND)
    strict = ("--set", "pretrain.learning_rates=[1.0e-12]", "--set", "promotion.margin=0")
    second = lab.retrain(*strict)
    assert second.returncode == 4, second.stderr
    assert f"experiments new: {SECOND}; tables: " in second.stdout
    assert "configuration: pretrain.learning_rates" in second.stdout
    # Only the new plates are packed: the champion's prediction, then the challenger's run.
    assert lab.packed()[1:] == [(0, 2 * PLATES), (PLATES, 5 * PLATES)]
    assert read_champion(registry) == champion
    assert len(fingerprints(registry)) == 2

    # Deciding again under wider margins needs no training.
    decided = lab.retrain(*strict[:2], *SETTLED, "--again")
    assert decided.returncode == 0, decided.stderr
    assert "nothing has changed; deciding again" in decided.stdout
    after = read_champion(registry)
    assert after is not None
    assert after.now.generation == 2
    assert after.now.fingerprint != champion.now.fingerprint
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/comparison.json")]
    (comparison,) = (report for report in reports if report["outcome"] == "compared")
    assert comparison["comparison"]["experiments"] == list(HOLDOUT)
    rows = comparison["comparison"]["stages"]["assigned"]
    assert [row["name"] for row in rows] == ["overall", "HUVEC"]
    assert rows[0]["plates"] == 2 * PLATES
    assert after.now.why == comparison["reason"]

    # The first champion predicted for the comparison what its own run had predicted.
    assert "has finished before, so nothing is started" in decided.stdout
    (predicted,) = tmp_path.glob("runs/*/predictions-*/predictions.csv")
    runs = tmp_path.glob("runs/*/challenger/predictions_holdout.csv")
    (own,) = (path for path in runs if path.parents[1] != predicted.parents[1])
    assert columns(predicted) == columns(own)
    assert len(columns(own)) == rows[0]["wells"]


def columns(file: Path) -> dict[str, tuple[str, str]]:
    """Both predictions of each well."""
    with file.open(newline="") as lines:
        return {row["id_code"]: (row["sirna"], row["raw_sirna"]) for row in csv.DictReader(lines)}
