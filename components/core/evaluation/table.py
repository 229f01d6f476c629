"""The accuracy table for a terminal, from the content of metrics.json. Imports nothing heavier than rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

SCORE_NAMES = {
    "out_of_fold": "out of fold",
    "unlabelled": "unlabelled (transductive)",
    "holdout": "holdout (inductive)",
}
STAGE_NAMES = {"raw": "raw", "group": "plate group", "assigned": "assigned"}


def accuracy_table(metrics: Mapping[str, Any], holdout: str = SCORE_NAMES["holdout"]) -> Table:
    """Well top-1 in percent: a row for each score and stage, a column for each cell type.

    Args:
        metrics: the content of metrics.json; scores that it lacks are left out.
        holdout: the title of the holdout score, which for a prediction is of new plates.
    """
    names = {**SCORE_NAMES, "holdout": holdout}
    scores = [name for name in names if name in metrics]
    # A cell type may be missing from one score (no holdout of it), so the columns are those of all scores.
    cell_types = list(dict.fromkeys(n for s in scores for n in metrics[s]["raw"] if n != "overall"))
    table = Table(title="Well top-1 accuracy, %", title_justify="left")
    table.add_column("score")
    table.add_column("stage")
    for name in ("overall", *cell_types):
        table.add_column(name, justify="right")
    table.add_column("wells", justify="right")
    for score in scores:
        for i, stage in enumerate(STAGE_NAMES):
            row = metrics[score][stage]
            table.add_row(
                names[score] if i == 0 else "",
                STAGE_NAMES[stage],
                *(f"{100 * row[name]:.1f}" if name in row else "–" for name in ("overall", *cell_types)),
                f"{metrics['wells'][score]['overall']:,}" if i == 0 and "wells" in metrics else "",
                end_section=stage == "assigned",
            )
    return table
