"""Compares a challenger with the champion: a row overall and for each cell type, and what follows by the rails. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from components.core.config import FrozenModel
from components.core.config.promotion import PromotionConfig
from components.core.evaluation.comparison.bootstrap import Interval, interval, resample
from components.core.evaluation.comparison.compared_well import COMPARED_STAGES, ComparedStage, ComparedWell
from components.core.evaluation.comparison.plate_counts import count_plates
from components.core.evaluation.comparison.rails import verdict
from components.core.evaluation.comparison.row import Row
from components.core.evaluation.scores import OVERALL

SCHEMA = 1


class Comparison(FrozenModel):
    """How a challenger does beside the champion on held-out experiments that neither ever saw."""

    comparison_schema: int = SCHEMA
    promote: bool
    reason: str = Field(description="one line, for people")
    settings: PromotionConfig
    seed: int
    experiments: tuple[str, ...] = Field(description="that were compared, in the wells' order")
    unknown_to_champion: int = Field(
        description="wells of siRNAs that the champion's vocabulary lacks; they count as wrong for it"
    )
    known_sirnas: Row | None = Field(
        None,
        description="the wells whose siRNA the champion knows, where there are others, for those let a challenger gain that is "
        "worse on these; shown, not deciding",
    )
    not_compared: tuple[str, ...] = Field((), description="cell types that have no held-out well")
    stages: dict[ComparedStage, tuple[Row, ...]] = Field(
        description="rows, overall first, by stage; settings.stage decides"
    )

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those that decide."""
        return self.stages[self.settings.stage]


def compare(
    wells: Sequence[ComparedWell], settings: PromotionConfig, seed: int = 0, cell_types: Sequence[str] = ()
) -> Comparison:
    """Compares two models on the same wells.

    Overall is over wells, so that a cell type counts by its held-out ones.

    Args:
        wells: held-out ones, at least one, each once.
        settings: the stage, the margins and the bootstrap.
        seed: of the bootstrap; the same wells, settings and seed make the same decision.
        cell_types: of the screen, in the order of the rows; those without a well are told.

    Raises:
        ValueError: no wells.
    """
    if not wells:
        raise ValueError("no wells to compare; a decision without holdout is `without_holdout`")
    parts: dict[str, list[ComparedWell]] = {name: [] for name in cell_types}
    for well in wells:
        parts.setdefault(well.cell_type, []).append(well)
    absent = tuple(name for name, members in parts.items() if not members)
    parts = {name: members for name, members in parts.items() if members}
    stages = {stage: _rows(parts, stage, settings, seed) for stage in COMPARED_STAGES}
    promote, reason = verdict(stages[settings.stage], settings)
    known = {name: [well for well in members if well.champion_knows] for name, members in parts.items()}
    known = {name: members for name, members in known.items() if members}
    unknown = len(wells) - sum(map(len, known.values()))
    return Comparison(
        promote=promote,
        reason=reason,
        settings=settings,
        seed=seed,
        experiments=tuple(dict.fromkeys(well.experiment for well in wells)),
        unknown_to_champion=unknown,
        known_sirnas=_rows(known, settings.stage, settings, seed)[0] if unknown and known else None,
        not_compared=absent,
        stages=stages,
    )


def _rows(
    parts: dict[str, list[ComparedWell]], stage: ComparedStage, settings: PromotionConfig, seed: int
) -> tuple[Row, ...]:
    """Overall, then each cell type."""
    counts = {name: count_plates(members, stage) for name, members in parts.items()}
    drawn = {name: resample(each, name, settings.resamples, seed) for name, each in counts.items()}

    def row(name: str, of: Sequence[str]) -> Row:
        members = [well for part in of for well in parts[part]]
        champion = sum(int(counts[part].champion_P.sum()) for part in of)
        challenger = sum(int(counts[part].challenger_P.sum()) for part in of)
        # Plates of a cell type that has one do not vary, and an interval would take that for certainty.
        found: Interval | None = None
        if all(counts[part].plates > 1 for part in of):
            found = interval([drawn[part] for part in of], settings.confidence)
        return Row(
            name=name,
            experiments=len({well.experiment for well in members}),
            plates=sum(counts[part].plates for part in of),
            wells=len(members),
            champion=champion / len(members),
            challenger=challenger / len(members),
            difference=(challenger - champion) / len(members),
            low=found.low if found else None,
            high=found.high if found else None,
            at_least_as_good=found.at_least_as_good if found else None,
            unknown_to_champion=sum(not well.champion_knows for well in members),
        )

    return (row(OVERALL, list(parts)), *(row(name, [name]) for name in parts))
