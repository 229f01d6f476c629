from __future__ import annotations

import io

from rich.console import Console

from components.core.evaluation.table import STAGE_NAMES, accuracy_table


def test_the_terminal_shows_every_score_in_percent() -> None:
    stages = {
        "raw": {"overall": 0.5, "RPE": 0.25},
        "group": {"overall": 0.75, "RPE": 0.5},
        "assigned": {"overall": 0.9876, "RPE": 1.0},
    }
    holdout = {stage: {"overall": 0.125, "U2OS": 0.125} for stage in stages}
    console = Console(file=io.StringIO(), width=100)
    console.print(
        accuracy_table(
            {
                "out_of_fold": stages,
                "holdout": holdout,
                "wells": {"out_of_fold": {"overall": 1234}, "holdout": {"overall": 8}},
            }
        )
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["assigned", "98.8", "100.0", "–"] in lines
    assert ["out", "of", "fold", "raw", "50.0", "25.0", "–", "1,234"] in lines
    assert ["holdout", "(inductive)", "raw", "12.5", "–", "12.5", "8"] in lines
    assert "transductive" not in text


def test_the_title_of_the_holdout_score_can_be_changed() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(accuracy_table({"holdout": {s: {"overall": 0.5} for s in STAGE_NAMES}}, holdout="new plates"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "new plates" in text
    assert "inductive" not in text
