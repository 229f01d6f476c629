"""A decision for a terminal. Imports nothing heavier than rich."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
        parts.append(Padding(_table(decision.comparison), (1, 0, 0, 0)))
        parts += [Text(note, style="dim") for note in notes(decision.comparison)]
    return Group(*parts)


def _table(comparison: Comparison) -> Table:
    table = Table(pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns(comparison)):
        table.add_column(name, justify="right" if number else "left", no_wrap=number == 0)
    for stage in ordered_stages(comparison):
        table.add_row(Text(stage_name(comparison, stage), style="italic"))
        for row in comparison.stages[stage]:
            table.add_row(
                *(Text(cell) for cell in cells(row, comparison)), end_section=row is comparison.stages[stage][-1]
            )
    return table
