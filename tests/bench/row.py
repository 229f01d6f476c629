"""A line of the bench: one measured figure beside what it is compared with."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

START = time.monotonic()


def report(doing: str) -> None:
    """Prints what is measured now, with the minutes since the start, to standard error."""
    print(f"{(time.monotonic() - START) / 60:5.1f} min  {doing}", file=sys.stderr, flush=True)  # noqa: T201


@dataclass(frozen=True)
class Row:
    """A figure of this project and, where there is one, of the baseline in the same unit."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    """how many times better than the baseline: times as fast, or times as many wells right"""
    note: str = ""
