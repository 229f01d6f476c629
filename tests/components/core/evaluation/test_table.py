from __future__ import annotations

import io

from rich.console import Console

from components.core.evaluation.table import accuracy_table

STAGES = {
    "raw": {"overall": 0.5, "R_P_E|": 0.25},
    "group": {"overall": 0.75, "R_P_E|": 0.5},
    "assigned": {"overall": 0.9876, "R_P_E|": 1.0},
}
METRICS = {
    "out_of_fold": STAGES,
    "holdout": {stage: {"overall": 0.125, "U2OS": 0.125} for stage in STAGES},
    "wells": {"out_of_fold": {"overall": 1234}, "holdout": {"overall": 8}},
}


def test_the_terminal_shows_every_score_in_percent() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(accuracy_table(METRICS, holdout="new plates"))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["score", "stage", "overall", "R_P_E|", "U2OS", "wells"] in lines
    assert ["out", "of", "fold", "raw", "50.0", "25.0", "–", "1,234"] in lines
    assert ["assigned", "98.8", "100.0", "–"] in lines
    assert ["new", "plates", "raw", "12.5", "–", "12.5", "8"] in lines
    assert not any("(transductive)" in line for line in lines)
