"""The scores of a study: accuracies by case and repeat, their mean and deviation, and how studies show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean, stdev
from typing import Any


class Scores:
    """A row of scores for every case (a rung, a protocol) and repeat (a seed, a deal of folds)."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], dict[str, float]] = {}

    def add(self, case: str, repeat: int, values: Mapping[str, float]) -> None:
        """Adds scores to a row."""
        self._rows.setdefault((case, repeat), {}).update(values)

    def row(self, case: str, repeat: int) -> dict[str, float]:
        """The scores of a case and repeat."""
        return self._rows.get((case, repeat), {})

    def of(self, case: str, score: str = "overall") -> dict[int, float]:
        """One score of a case by repeat, ascending."""
        rows = sorted(self._rows.items())
        return {repeat: row[score] for (name, repeat), row in rows if name == case and score in row}


def summary(values: Mapping[int, float], unit: str) -> dict[str, Any]:
    """Mean and sample standard deviation, None if there are too few values for them; `per_UNIT`: the values by repeat."""
    found = list(values.values())
    return {
        "mean": mean(found) if found else None,
        "sd": stdev(found) if len(found) > 1 else None,
        f"per_{unit}": {str(repeat): value for repeat, value in values.items()},
    }


def percent(mean: float | None, deviation: float | None, missing: str = "") -> str:
    """`44.1 ± 5.7`; `missing` stands for a deviation that is None."""
    if mean is None:
        return "–"
    spread = missing if deviation is None else f"{100 * deviation:.1f}"
    return f"{100 * mean:.1f}" + (f" ± {spread}" if spread else "")


def accuracies(values: Iterable[float | None]) -> list[str]:
    """Table cells with three decimals; empty for None."""
    return ["" if value is None else f"{value:.3f}" for value in values]
