"""Fails if the demo's results are incomplete or below what the README promises."""

import json
import sys
from pathlib import Path

RESULTS = ("predictions.csv", "predictions_oof.csv", "metrics.json", "report.html", "config.yaml", "lineage.json")

out = Path(sys.argv[1])
missing = [name for name in RESULTS if not (out / name).is_file() or not (out / name).stat().st_size]
if missing:
    sys.exit(f"the demo left no {missing}")
scores = json.loads((out / "metrics.json").read_text())["unlabelled"]
raw, assigned = scores["raw"], scores["assigned"]
low = [name for name, value in raw.items() if value < (0.60 if name == "overall" else 0.30)]
print(f"unlabelled: raw {raw}, assigned {assigned}")
if low or assigned["overall"] < 0.90:
    sys.exit(f"the demo is below its figures: raw too low for {low}, assigned {assigned['overall']}")
