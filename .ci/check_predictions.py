"""Fails where the demo's published model names the demo's own plates otherwise than the demo did.

`check_predictions.py DEMO OUT`: publishes and promotes the model of the finished demo in folder DEMO, predicts its unlabelled and
its held-out experiments from their tables alone into OUT, and compares names, confidences and scores.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

demo, out = Path(sys.argv[1]), Path(sys.argv[2])
screen = demo / "run" / "simulated" / "screen"
SAME = ("sirna", "raw_sirna", "top5")
# Other batches round logits in the sixth digit, and balancing stops within prior.sinkhorn_tolerance.
ABOUT = {"raw_confidence": 1e-5, "confidence": 1e-3, "margin": 1e-3}


def cellsignal(*words: object) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *map(str, words)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(f"{' '.join(command)} ended with {code}")


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id_code"]: row for row in csv.DictReader(file)}


def check(score: str, table: str, labels: dict[str, str]) -> None:
    """Predicts the plates of a table of the demo and compares all that is said of them."""
    own, folder = rows(demo / table), out / score
    truth = out / f"{score}.csv"
    truth.write_text("id_code,sirna\n" + "".join(f"{well},{labels[well]}\n" for well in own))
    experiments = ",".join(sorted({well.split("_")[0] for well in own}))
    cellsignal("predict", "--screen", screen, "--experiments", experiments, "--truth", truth, "--out", folder)
    new = rows(folder / "predictions.csv")
    if not own or new.keys() != own.keys():
        sys.exit(f"{score}: {len(new)} wells are named, the demo named {len(own)}")
    apart = dict.fromkeys(ABOUT, 0.0)
    for well, row in own.items():
        for column in SAME:
            if new[well][column] != row[column]:
                sys.exit(f"{score}: {column} of {well} is {new[well][column]}, the demo said {row[column]}")
        for column in ABOUT:
            apart[column] = max(apart[column], abs(float(new[well][column]) - float(row[column])))
    if far := [column for column, most in ABOUT.items() if apart[column] > most]:
        sys.exit(f"{score}: {far} are farther from the demo's than {ABOUT}: {apart}")
    found = json.loads((folder / "metrics.json").read_text())["holdout"]
    expected = json.loads((demo / "metrics.json").read_text())[score]
    if found != expected:
        sys.exit(f"{score}: scores {found}, the demo's were {expected}")
    print(f"{score}: {len(own)} wells named as by the demo, largest differences {apart}, score {found['assigned']}")


out.mkdir(parents=True)
known = {**rows(screen / "train.csv"), **rows(demo / "run" / "simulated" / "truth.csv")}
cellsignal("models", "promote", demo, "--reason", "the demo's check")
for each, where in (("unlabelled", "predictions.csv"), ("holdout", "predictions_holdout.csv")):
    check(each, where, {well: row["sirna"] for well, row in known.items()})
