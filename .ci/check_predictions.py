"""Fails if the demo's published model predicts the demo's own plates differently than the demo did.

`check_predictions.py DEMO OUT`: publishes and promotes the model of the finished demo in folder DEMO, predicts its unlabelled and
its held-out experiments from their tables alone into OUT, and compares classes, confidences and scores.
"""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

demo, out = Path(sys.argv[1]), Path(sys.argv[2])
screen = demo / "run" / "simulated" / "screen"
SAME = ["sirna", "raw_sirna", "top5"]
# Other batches round logits in the sixth digit, and balancing stops within prior.sinkhorn_tolerance.
LARGEST = {"raw_confidence": 1e-5, "confidence": 1e-3, "margin": 1e-3}


def cellsignal(*arguments: object) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(f"{' '.join(command)} ended with {code}")


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, index_col="id_code").sort_index()


def check(score: str, predictions: str, labels: pd.Series) -> None:
    """Predicts the plates of one of the demo's tables and compares the results."""
    expected, folder, truth = table(demo / predictions), out / score, out / f"{score}.csv"
    labels[expected.index].to_csv(truth)
    experiments = ",".join(sorted(set(expected.index.str.partition("_").get_level_values(0))))
    cellsignal("predict", "--screen", screen, "--experiments", experiments, "--truth", truth, "--out", folder)
    found = table(folder / "predictions.csv")
    if expected.empty or not found.index.equals(expected.index):
        sys.exit(f"{score}: predicts {len(found)} wells, the demo predicted {len(expected)}")
    if different := int((found[SAME] != expected[SAME]).any(axis=1).sum()):
        sys.exit(f"{score}: {different} of {len(found)} wells are classified differently than by the demo")
    differences = {column: float((found[column] - expected[column]).abs().max()) for column in LARGEST}
    if any(differences[column] > largest for column, largest in LARGEST.items()):
        sys.exit(f"{score}: largest differences from the demo are {differences}, allowed are {LARGEST}")
    scores, known = (json.loads((where / "metrics.json").read_text()) for where in (folder, demo))
    if scores["holdout"] != known[score]:
        sys.exit(f"{score}: scores {scores['holdout']}, the demo's were {known[score]}")
    print(f"{score}: {len(found)} wells classified as by the demo; largest differences {differences}")


out.mkdir(parents=True)
known_labels = pd.concat([table(screen / "train.csv"), table(demo / "run" / "simulated" / "truth.csv")])["sirna"]
cellsignal("models", "promote", demo, "--reason", "the demo's check")
check("unlabelled", "predictions.csv", known_labels)
check("holdout", "predictions_holdout.csv", known_labels)
