"""The cycle in a bucket of a real object store: new experiments, retraining, promotion, prediction, and again."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from components.core.registry.champion import read_champion
from components.core.registry.published_models import fingerprints
from components.core.storage.object_store import ObjectStore
from tests.pipelines.tiny_run import CONFIG, ROOT, Cellsignal, error_line
from tests.seaweedfs import S3Server

BUCKET = "lab"
SIMULATED = "simulate: {labelled: {HUVEC: 6}, unlabelled: {HUVEC: 1}, treatments_per_group: 6, positive_controls: 1}"
HOLDOUT = ("HUVEC-01", "HUVEC-02")
FIRST, SECOND, THIRD = ("HUVEC-03", "HUVEC-04"), "HUVEC-05", "HUVEC-06"
UNLABELLED = "HUVEC-07"
PLATES = 4
SETTLED = ("--set", "promotion.margin=1", "--set", "promotion.cell_type_margin=1")
"""Whatever networks of one epoch predict."""


class Lab:
    """A simulated screen in a bucket, to which experiments are added one by one, and the command."""

    def __init__(self, folder: Path, store: ObjectStore, environment: Mapping[str, str]) -> None:
        self.folder, self.store, self.environment = folder, store, dict(environment)
        self.command = Cellsignal(folder)
        self.config = folder / "tiny.yaml"
        # Training ends with pretrain, to save time.
        text = re.sub(r"simulate: .*", SIMULATED, CONFIG).replace("mean_teacher: {", "mean_teacher: {enabled: false, ")
        held = f"holdout_experiments: [{', '.join(HOLDOUT)}]"
        self.config.write_text(text.replace("image_size: 16", f"image_size: 16, {held}"))
        arguments = ["--config", str(self.config), "--out", str(folder / "simulated")]
        subprocess.run([sys.executable, "-m", "components.simulate", *arguments], check=True, cwd=ROOT)
        self.screen = folder / "simulated" / "screen"
        self.experiments: list[str] = []

    def add(self, *experiments: str) -> None:
        """Adds experiments to the screen: their images, then the tables of all."""
        self.experiments += experiments
        images = [path for path in self.screen.rglob("*.png") if path.parts[-3] in experiments]
        self.store.put_many((f"screen/{path.relative_to(self.screen)}", path.read_bytes()) for path in images)
        for table in self.screen.glob("*.csv"):
            head, *rows = table.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.split(",")[1] in self.experiments]
            self.store.put(f"screen/{table.name}", "".join([head, *kept]).encode())

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
def test_cycle_of_new_experiments_retraining_promotion_and_prediction(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.create_bucket(BUCKET)
    environment = s3_server.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lab = Lab(tmp_path, ObjectStore(BUCKET), environment)
    registry = ObjectStore(BUCKET, "cs")

    lab.add(*HOLDOUT, *FIRST, UNLABELLED)
    first = lab.retrain()
    assert first.returncode == 0, first.stderr
    assert "the first model" in first.stdout
    champion = read_champion(registry)
    assert champion is not None
    assert champion.now.generation == 1
    assert lab.packed() == [(5 * PLATES, 0)]

    # A new experiment: only its plates are packed, and both models predict experiments that neither saw.
    lab.add(SECOND)
    second = lab.retrain(*SETTLED)
    assert second.returncode == 0, second.stderr
    assert f"experiments new: {SECOND}; tables: " in second.stdout
    assert lab.packed()[1:] == [
        (0, 2 * PLATES),
        (PLATES, 5 * PLATES),
    ]  # the champion's prediction, the challenger's run
    champion = read_champion(registry)
    assert champion is not None
    assert champion.now.generation == 2
    assert champion.now.fingerprint != champion.history[0].fingerprint
    (comparison,) = (
        json.loads(path.read_text()) for path in tmp_path.glob("runs/*/comparison.json") if is_compared(path)
    )
    rows = comparison["comparison"]["stages"]["assigned"]
    assert [row["name"] for row in rows] == ["overall", "HUVEC"]
    assert comparison["comparison"]["experiments"] == list(HOLDOUT)
    assert rows[0]["plates"] == 2 * PLATES
    assert champion.now.why == comparison["reason"]

    # The champion predicts the held-out experiments as well as its run did.
    truth = tmp_path / "truth.csv"
    with (lab.screen / "train.csv").open(newline="") as file:
        held = [row for row in csv.DictReader(file) if row["experiment"] in HOLDOUT]
    truth.write_text("id_code,sirna\n" + "".join(f"{row['id_code']},{row['sirna']}\n" for row in held))
    out = tmp_path / "predicted"
    predicted = lab(
        "predict", "--screen", f"s3://{BUCKET}/screen", "--model", f"s3://{BUCKET}/cs/models/champion",
        "--experiments", ",".join(HOLDOUT), "--truth", str(truth), "--out", str(out),
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    raw = comparison["comparison"]["stages"]["raw"][0]
    assert metrics["holdout"]["assigned"]["overall"] == pytest.approx(rows[0]["challenger"], abs=1e-5)
    assert metrics["holdout"]["raw"]["overall"] == pytest.approx(raw["challenger"], abs=1e-5)

    # One more, and a challenger that learned nothing: it is published, and the champion stays.
    lab.add(THIRD)
    strict = ("--set", "pretrain.learning_rates=[1.0e-12]", "--set", "promotion.margin=0")
    third = lab.retrain(*strict)
    assert third.returncode == 4, third.stderr
    assert f"experiments new: {THIRD}" in third.stdout
    assert "configuration: pretrain.learning_rates" in third.stdout
    assert lab.packed()[-2:] == [(0, 2 * PLATES), (PLATES, 6 * PLATES)]
    assert read_champion(registry) == champion
    assert len(fingerprints(registry)) == 3

    # Deciding again under wider margins needs no training.
    decided = lab.retrain(*strict[:2], *SETTLED, "--again")
    assert decided.returncode == 0, decided.stderr
    assert "nothing has changed; deciding again" in decided.stdout
    after = read_champion(registry)
    assert after is not None
    assert after.now.generation == 3

    # A champion whose networks are of another architecture is found before anything is trained.
    network = next(key for key in registry.list(f"models/{after.now.fingerprint}/") if key.endswith(".safetensors"))
    other = next(key for key in registry.list(f"models/{champion.now.fingerprint}/") if key.endswith(".safetensors"))
    registry.put(network, registry.get(other)[:-1])
    state = {key: registry.get(key) for key in registry.list("models/")}
    refused = lab.retrain("--set", "seed=9", *SETTLED)
    assert refused.returncode == 2, refused.stderr
    assert re.search(r"model \w+: .*safetensors", error_line(refused)), refused.stderr
    assert {key: registry.get(key) for key in registry.list("models/")} == state


def is_compared(path: Path) -> bool:
    return json.loads(path.read_text())["outcome"] == "compared"
