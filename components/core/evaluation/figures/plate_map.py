"""Confidence of every well in plate geometry, with errors marked if the truth is known. Writes SVG without matplotlib.

A page may show tens of thousands of wells: one short element each, styled by class, with a tooltip.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from html import escape
from typing import Any

from components.core.evaluation.scores import UNSURE
from components.core.screen.wells import ROWS, split_well
from components.core.storage.manifest import PlateRecord

CELL = 11
"""Side of a well in user units; the drawn square leaves a gap of one."""
LARGEST = 18
"""Pixels of a well on screen at most, so that small plates do not swell."""
LEFT, TOP = 15, 13
EDGES = (0.2, 0.4, UNSURE, 0.8, 0.95)
"""Upper edges of the confidence classes c0..c4; c5 is above the last."""
COLOURS = ("#7f2704", "#c94f07", "#f2903d", "#f9cf9c", "#a9cbe3", "#3d7fb5")
"""Vermilion (unsure) to blue (sure): distinct without red and green, and dark at both ends."""


def shade(confidence: float) -> int:
    """Index of the confidence class, 0 (least sure) to 5."""
    return sum(confidence >= edge for edge in EDGES)


def plate_extent(plates: Sequence[PlateRecord]) -> tuple[int, int, int, int]:
    """First and last row and column in use, numbers from 0 and from 1, so that all plates share one geometry."""
    places = {split_well(well.well) for plate in plates for well in plate.wells}
    rows, columns = [ROWS.index(row) for row, _ in places], [int(column) for _, column in places]
    return min(rows), max(rows), min(columns), max(columns)


def draw(
    plate: PlateRecord,
    predictions: Mapping[str, Any],
    extent: tuple[int, int, int, int],
    marked: Container[str] = (),
) -> str:
    """One plate: treatment wells shaded by confidence, controls as dots, unused positions empty.

    Args:
        plate: the plate's record.
        predictions: rows of a predictions table by id_code, as itertuples yields them; a treatment well without one is empty.
        extent: rows and columns to draw, from `plate_extent`.
        marked: id_codes of wells, controls too, that get a frame.
    """
    top, bottom, first, last = extent
    rows = ROWS[top : bottom + 1]
    width, height = LEFT + CELL * (last - first + 1) + 1, TOP + CELL * len(rows) + 1
    parts = []
    for column in range(first, last + 1):
        if column in (first, last) or column % 4 == 0:
            parts.append(f'<text x="{LEFT + CELL * (column - first) + CELL / 2:g}" y="9">{column}</text>')
    for r, row in enumerate(rows):
        parts.append(f'<text x="7" y="{TOP + CELL * r + 8.5:g}">{row}</text>')
    confidences = []
    for well in plate.wells:
        row, number = split_well(well.well)
        x, y = LEFT + CELL * (int(number) - first), TOP + CELL * (ROWS.index(row) - top)
        found = predictions.get(well.id_code)
        if well.role != "treatment":
            parts.append(f'<circle cx="{x + 5}" cy="{y + 5}" r="1.6"/>')
        elif found is None:
            parts.append(f'<rect class="e" x="{x}" y="{y}"/>')
        else:
            confidences.append(found.confidence)
            wrong = isinstance(found.truth, str) and found.truth != found.perturbation
            tip = f"{well.well} {found.perturbation} {found.confidence:.2f}" + (
                f", truly {found.truth}" if wrong else ""
            )
            parts.append(
                f'<rect class="c{shade(found.confidence)}" x="{x}" y="{y}"><title>{escape(tip)}</title></rect>'
            )
            if wrong:
                dark = shade(found.confidence) in (0, 1, 5)
                parts.append(f'<path class="x{" l" if dark else ""}" d="M{x + 2.5} {y + 2.5}l5 5m0-5l-5 5"/>')
        if well.id_code in marked:
            parts.append(f'<rect class="m" x="{x}" y="{y}"/>')
    low = sum(c < UNSURE for c in confidences)
    alt = f"Plate {plate.plate} of {plate.experiment}: {len(confidences)} wells, {low} with confidence below {UNSURE:g}"
    return (
        f'<svg class="plate" role="img" aria-label="{escape(alt, quote=True)}" viewBox="0 0 {width} {height}" '
        f'style="max-width:{LARGEST * width // CELL}px">' + "".join(parts) + "</svg>"
    )
