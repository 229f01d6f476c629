"""A decision as Markdown: for the report's folder, a CI job's summary, and the terminal, which renders the same text. Pure."""

from __future__ import annotations

from components.core.evaluation.comparison.decision import Comparison, ComparisonRow, Decision, interval_name, signed
from components.core.evaluation.comparison.wells import ComparedStage
from components.core.evaluation.table import escaped, markdown_table

_STAGES: dict[ComparedStage, str] = {"assigned": "assigned, what users get", "raw": "raw, the networks alone"}
_NO_VALUE = "–"
_FEW = "*"
"""Marks an interval of fewer plates than the promotion rules accept."""


def decision_markdown(decision: Decision) -> str:
    """A heading with the decision, its reason, and if the models were compared a table per stage with notes."""
    verb = "promote" if decision.promote else "do not promote"
    heading = {
        "compared": f"Challenger {decision.challenger} against champion {decision.champion}: {verb}",
        "without_holdout": f"Challenger {decision.challenger}, not compared with champion {decision.champion}: {verb}",
        "first_model": f"Challenger {decision.challenger}: {verb}",
        "same_model": f"Challenger {decision.challenger} is the champion",
    }[decision.outcome]
    blocks = [f"### {escaped(heading)}", f"**{escaped(decision.reason)}**"]
    if comparison := decision.comparison:
        deciding = comparison.settings.stage
        for stage in sorted(comparison.stages, key=lambda stage: stage != deciding):
            blocks.append(f"{_STAGES[stage]}{'' if stage == deciding else ' (does not decide)'}")
            blocks.append(_table(comparison, stage))
        blocks.append("\n".join(f"- {escaped(note)}" for note in (*_notes(comparison), *decision.left_out)))
    return "\n\n".join(blocks) + "\n"


def _table(comparison: Comparison, stage: ComparedStage) -> str:
    interval = interval_name(comparison.settings)
    header = ("", "plates", "wells", "champion", "challenger", "change", interval, "as good")
    rows = [[_cell(text) for text in _cells(row, comparison)] for row in comparison.stages[stage]]
    return markdown_table([_cell(text) for text in header], rows)


def _cells(row: ComparisonRow, comparison: Comparison) -> tuple[str, ...]:
    """A row's cells, accuracies in percent and differences in points."""
    spread = _NO_VALUE
    if row.low is not None and row.high is not None:
        few = _FEW if row.plates < comparison.settings.min_plates else ""
        spread = f"{signed(row.low)} to {signed(row.high)}{few}"
    return (
        row.name,
        str(row.plates),
        f"{row.wells:,}",
        f"{100 * row.champion:.2f}",
        f"{100 * row.challenger:.2f}",
        signed(row.difference),
        spread,
        _NO_VALUE if row.at_least_as_good is None else f"{100 * row.at_least_as_good:.1f}",
    )


def _cell(text: str) -> str:
    # Browsers break an interval at its spaces.
    return escaped(text).replace(" ", "\u00a0")


def _notes(comparison: Comparison) -> list[str]:
    """How to read the figures."""
    settings, overall = comparison.settings, comparison.rows[0]
    notes = [
        "Well top-1 in percent; change in points, challenger less champion; as good: percent of resamples in which the "
        "challenger is at least as good.",
        f"Intervals: paired bootstrap over plates within cell types, {settings.resamples:,} resamples, widened for few plates; "
        f"each end is a one-sided {100 * settings.confidence:g} % bound.",
        f"They cover other plates of {'this experiment' if overall.experiments == 1 else 'these experiments'} "
        f"({', '.join(comparison.experiments)}), not other experiments, whose plates share their own batch effects.",
    ]
    if any(row.low is not None and row.plates < settings.min_plates for row in comparison.rows):
        notes.append(
            f"{_FEW} Fewer than {settings.min_plates} plates: too few to decide by; for a cell type only the change counts."
        )
    if comparison.unknown_to_champion:
        notes.append(
            f"{comparison.unknown_to_champion:,} of {overall.wells:,} wells hold a label that the champion does not know; they "
            "count as wrong for it, as users would get a wrong prediction."
        )
    if comparison.known_perturbations:
        _, _, wells, champion, challenger, change, spread, _ = _cells(comparison.known_perturbations, comparison)
        notes.append(
            f"Wells of labels that the champion knows ({wells}): champion {champion}, challenger {challenger}, change {change}, "
            f"{interval_name(settings)} {spread}."
        )
    if comparison.not_compared:
        notes.append(f"Not compared, as none of their wells is held out: {', '.join(comparison.not_compared)}.")
    return notes
