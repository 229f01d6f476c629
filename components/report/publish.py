"""Shows a finished report in the KFP user interface as well: its page and its scalar metrics. Plain files and a callback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path


def publish(results: str, page: str, log_metric: Callable[[str, float], None]) -> None:
    """Copies report.html to the page artifact and logs the overall accuracies.

    Args:
        results: folder that the report step wrote.
        page: path of the HTML artifact.
        log_metric: hears name and value, for example `unlabelled_assigned`.
    """
    folder = Path(results)
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "report.html", page)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for score in ("out_of_fold", "unlabelled", "holdout"):
        for stage, values in metrics.get(score, {}).items():
            if isinstance(values, dict) and values.get("overall") is not None:
                log_metric(f"{score}_{stage}", float(values["overall"]))
