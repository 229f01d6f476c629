"""What a decision's tables say, whatever they are drawn with: heading, columns, cells and notes. Pure."""

from __future__ import annotations

from components.core.evaluation.comparison.compared_well import ComparedStage
from components.core.evaluation.comparison.comparing import Comparison
from components.core.evaluation.comparison.decision import Decision
from components.core.evaluation.comparison.rails import interval_name, signed
from components.core.evaluation.comparison.row import Row

NO_VALUE = "–"
FEW = "*"
"""Behind an interval of fewer plates than decide."""
STAGES: dict[ComparedStage, str] = {"assigned": "assigned, what users get", "raw": "raw, the networks alone"}


def heading(decision: Decision) -> str:
    """What was decided about whom, without the reason."""
    if decision.outcome == "same_model":
        return f"Challenger {decision.challenger} is the champion"
    verb = "promote" if decision.promote else "do not promote"
    against = {
        "compared": f" against champion {decision.champion}",
        "without_holdout": f", not compared with champion {decision.champion}",
        "first_model": "",
    }[decision.outcome]
    return f"Challenger {decision.challenger}{against}: {verb}"


def columns(comparison: Comparison) -> tuple[str, ...]:
    """Headings; all but the first are of numbers."""
    interval = interval_name(comparison.settings)
    return ("", "plates", "wells", "champion", "challenger", "difference", interval, "as good")


def stage_name(comparison: Comparison, stage: ComparedStage) -> str:
    """What rows of a stage are, and whether they decide."""
    return f"{STAGES[stage]}{'' if stage == comparison.settings.stage else ' (decides nothing)'}"


def cells(row: Row, comparison: Comparison) -> tuple[str, ...]:
    """A row's cells, accuracies in percent and differences in points."""
    spread = NO_VALUE
    if row.low is not None and row.high is not None:
        few = FEW if row.plates < comparison.settings.min_plates else ""
        spread = f"{signed(row.low)} to {signed(row.high)}{few}"
    return (
        row.name,
        str(row.plates),
        f"{row.wells:,}",
        f"{100 * row.champion:.2f}",
        f"{100 * row.challenger:.2f}",
        signed(row.difference),
        spread,
        NO_VALUE if row.at_least_as_good is None else f"{100 * row.at_least_as_good:.1f}",
    )


def ordered_stages(comparison: Comparison) -> tuple[ComparedStage, ...]:
    """The one that decides, then the others."""
    return tuple(sorted(comparison.stages, key=lambda stage: stage != comparison.settings.stage))


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the figures, one sentence or two each."""
    settings, overall = comparison.settings, comparison.rows[0]
    found = [
        "Well top-1 in percent; differences in points, challenger less champion; as good: percent of resamples in which the "
        "challenger is at least as good.",
        f"Intervals: paired bootstrap over plates within cell types, {settings.resamples:,} resamples, widened for few plates; "
        f"each end is a one-sided {100 * settings.confidence:g} % bound.",
        f"They tell how other plates of {'this experiment' if overall.experiments == 1 else 'these experiments'} would differ "
        f"({', '.join(comparison.experiments)}), not how another experiment would, whose plates share its own batch effect.",
    ]
    if any(row.low is not None and row.plates < settings.min_plates for row in comparison.rows):
        found.append(
            f"{FEW} Fewer than {settings.min_plates} plates: for orientation, too narrow to decide by; of a cell type the "
            "difference alone counts."
        )
    if comparison.unknown_to_champion:
        found.append(
            f"{comparison.unknown_to_champion:,} of {overall.wells:,} wells hold a siRNA that the champion does not know; they "
            "count as wrong for it, as users would get a wrong name."
        )
    if comparison.known_sirnas:
        known = cells(comparison.known_sirnas, comparison)
        found.append(
            f"Wells of siRNAs that the champion knows ({known[2]}): champion {known[3]}, challenger {known[4]}, difference "
            f"{known[5]}, {interval_name(settings)} {known[6]}."
        )
    if comparison.not_compared:
        found.append(f"Not compared, as none of their wells is held out: {', '.join(comparison.not_compared)}.")
    return found
