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
            title = stage_name(decision.comparison, stage)
            blocks.append(_table((title, *columns(decision.comparison)[1:]), rows))
        blocks.append("\n".join(f"- {escaped(note)}" for note in notes(decision.comparison)))
    return "\n\n".join(blocks) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (map(escaped, header), rule, *(map(escaped, row) for row in rows))
    )


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a cell of a table too."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
