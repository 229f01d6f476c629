"""A decision for a terminal. Imports nothing heavier than rich."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from components.core.evaluation.comparison.compared_well import ComparedStage
from components.core.evaluation.comparison.comparing import Comparison
from components.core.evaluation.comparison.decision import Decision
from components.core.evaluation.comparison.shown import cells, columns, heading, notes, ordered_stages, stage_name


def comparison_table(decision: Decision) -> RenderableType:
    """The decision, why, and where models were compared the rows of both stages and what they mean."""
    # Text and not str: names and reasons are no markup.
    parts: list[RenderableType] = [
        Text(heading(decision), style="bold green" if decision.promote else "bold yellow"),
        Text(decision.reason),
    ]
    if decision.comparison:
        parts += [_table(decision.comparison, stage) for stage in ordered_stages(decision.comparison)]
        parts.append(Text())
        parts += [Text(note, style="dim") for note in notes(decision.comparison)]
    return Group(*parts)


def _table(comparison: Comparison, stage: ComparedStage) -> Table:
    table = Table(
        title=Text(f"\n{stage_name(comparison, stage)}"),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # a column is as wide as its heading, so that all of them fit into 80
    )
    for number, name in enumerate(columns(comparison)):
        table.add_column(name, justify="right" if number else "left")
    for row in comparison.stages[stage]:
        table.add_row(*(Text(cell) for cell in cells(row, comparison)))
    return table
