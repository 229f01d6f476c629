"""What a challenger must show to be promoted, rail by rail, and how that is told in one line. Pure.

Overall it must be shown not to be worse by more than a margin (non-inferiority); no cell type may be measured much worse, so that
a gain in one does not pay for a loss in another. Differences are told in points: percent of wells.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.core.config.promotion import PromotionConfig
from components.core.evaluation.comparison.row import Row


def verdict(rows: Sequence[Row], settings: PromotionConfig) -> tuple[bool, str]:
    """Whether the challenger is promoted, and why.

    Args:
        rows: overall first, then each cell type, at the stage that decides.
        settings: the margins.

    Returns:
        The decision, and a line that names every rail that refused, or all that let it pass.
    """
    overall, *cell_types = rows
    refusals = _too_few(overall, cell_types, settings) or _overall(overall, settings)
    refusals += _each(cell_types, settings)
    if refusals:
        return False, "; ".join(refusals)
    return True, (
        f"{_told(overall, settings)} is not worse by more than {points(settings.margin)}, and no cell type by more than "
        f"{points(settings.cell_type_margin)}"
    )


def _too_few(overall: Row, cell_types: Sequence[Row], settings: PromotionConfig) -> list[str]:
    """What holds where plates are so few that their bootstrap shows nothing."""
    refusals = []
    if overall.plates < settings.min_plates:
        refusals.append(
            f"{_count(overall.plates, 'held-out plate')}, where fewer than {settings.min_plates} (promotion.min_plates) show "
            "nothing; hold out more experiments"
        )
    single = [row.name for row in cell_types if row.plates == 1]
    if single:
        refusals.append(
            f"{' and '.join(single)} with a single held-out plate, which does not show how plates differ; hold out two or more, "
            "or none"
        )
    return refusals


def _overall(row: Row, settings: PromotionConfig) -> list[str]:
    """What holds where it is not shown that the challenger is not worse."""
    assert row.low is not None
    assert row.high is not None
    if row.low > -settings.margin:
        return []
    what = "is worse" if row.high < -settings.margin else "may be worse"
    return [f"{_told(row, settings)} {what} by more than {points(settings.margin)}"]


def _each(rows: Sequence[Row], settings: PromotionConfig) -> list[str]:
    """The cell types that are worse by too much."""
    worse = [f"{row.name} {signed(row.difference)}" for row in rows if row.difference < -settings.cell_type_margin]
    if not worse:
        return []
    return [f"{', '.join(worse)}: a cell type may be worse by {points(settings.cell_type_margin)} at most"]


def _told(row: Row, settings: PromotionConfig) -> str:
    assert row.low is not None
    assert row.high is not None
    return f"{row.name} {signed(row.difference)} ({interval_name(settings)} {signed(row.low)} to {signed(row.high)} points)"


def interval_name(settings: PromotionConfig) -> str:
    """The two-sided interval whose lower end is the one-sided bound."""
    return f"{100 * (2 * settings.confidence - 1):.6g} % interval"


def signed(fraction: float) -> str:
    """A difference in points, with its sign; zero has none."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def points(fraction: float) -> str:
    """A margin in points."""
    number = f"{100 * fraction:.6g}"
    return f"{number} point" if number == "1" else f"{number} points"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
