"""A decision as GitHub-flavoured Markdown, for a job's summary. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from components.core.evaluation.comparison.decision import Decision
from components.core.evaluation.comparison.shown import cells, columns, heading, notes, ordered_stages, stage_name

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def comparison_markdown(decision: Decision) -> str:
    """A heading that says what was decided, why, and where models were compared a table a stage and what they mean."""
    blocks = [f"### {escaped(heading(decision))}", f"**{escaped(decision.reason)}**"]
    if decision.comparison:
        for stage in ordered_stages(decision.comparison):
            rows = [cells(row, decision.comparison) for row in decision.comparison.stages[stage]]
            blocks += [escaped(stage_name(decision.comparison, stage)), _table(columns(decision.comparison), rows)]
        blocks.append("\n".join(f"- {escaped(note)}" for note in notes(decision.comparison)))
    return "\n\n".join(blocks) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    lines = [[_cell(text) for text in header], rule, *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    # Browsers break an interval in two where its spaces let them.
    return escaped(text).replace(" ", "\u00a0")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a cell of a table too."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
