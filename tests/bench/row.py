"""A line of the bench: one measured figure beside what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass


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
