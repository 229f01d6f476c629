"""The accuracy table as Markdown, which rich shows in a terminal. Imports nothing heavier than rich."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markdown import Markdown

SCORE_NAMES = {
    "out_of_fold": "out of fold",
    "unlabelled": "unlabelled (transductive)",
    "holdout": "holdout (inductive)",
}
STAGE_NAMES = {"raw": "raw", "group": "plate group", "assigned": "assigned"}
UNEQUAL = 1.5
"""How many times as many wells the commonest label has as the rarest, from which balanced accuracy is shown beside top-1."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def accuracy_table(metrics: Mapping[str, Any], holdout: str = SCORE_NAMES["holdout"]) -> Markdown:
    """Well top-1 in percent: a row for each score and stage, a column for each cell type; one stage without a plate design.

    A row of balanced accuracies follows where labels have different numbers of wells, see `labels_are_unequal`.

    Args:
        metrics: the content of metrics.json; scores that it lacks are left out.
        holdout: the title of the holdout score, which for a prediction is of new plates.
    """
    names = {**SCORE_NAMES, "holdout": holdout}
    scores = [name for name in names if name in metrics]
    if not scores:
        return Markdown("No truth of a predicted well is known, so there is no accuracy to report")
    # A cell type may be missing from one score (no holdout of it), so the columns come from all scores.
    columns = list(dict.fromkeys(["overall", *(name for score in scores for name in metrics[score]["raw"])]))
    # Without a plate design the stages do not differ.
    stages = STAGE_NAMES if metrics.get("plate_design", True) else {"raw": ""}
    rows = []
    for score in scores:
        wells = f"{metrics['wells'][score]['overall']:,}" if "wells" in metrics else ""
        for stage, title in stages.items():
            first, several = stage == "raw", len(stages) > 1
            lines = [(names[score] if first else "", title, metrics[score][stage], wells if first else "")]
            if labels_are_unequal(metrics, score):
                balanced = metrics["balanced_accuracy"][score][stage]
                lines.append(("" if several else "balanced", f"{title}, balanced", balanced, ""))
            for first_cell, second_cell, found, last_cell in lines:
                values = [f"{100 * found[name]:.1f}" if name in found else "–" for name in columns]
                rows.append([first_cell, *([second_cell] if several else []), *values, last_cell])
    header = ["score", *(["stage"] if len(stages) > 1 else []), *map(escaped, columns), "wells"]
    text = "Well top-1 accuracy, %\n\n" + markdown_table(header, rows, labels=len(header) - len(columns) - 1)
    return Markdown(text, justify="default")  # the default of paragraphs pads them to the console's width


def labels_are_unequal(metrics: Mapping[str, Any], score: str) -> bool:
    """Whether labels have so different numbers of wells that balanced accuracy is worth showing beside top-1; see UNEQUAL.

    Args:
        metrics: the content of metrics.json; older ones have no numbers of wells a label.
        score: one that it has.
    """
    found = metrics.get("labels", {}).get(score)
    return bool(found) and found["most"] > UNEQUAL * found["fewest"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> str:
    """A table of Markdown cells; the first `labels` columns are text, the others numbers."""
    rule = ["---"] * labels + ["---:"] * (len(header) - labels)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def escaped(text: str) -> str:
    """Text that Markdown shows literally, on one line, also in a table's cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
