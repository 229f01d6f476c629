"""Whether a challenger is promoted: a paired bootstrap over plates and the promotion rules. Pure; NumPy, pandas, pydantic.

P plates of a cell type, R resamples. The wells of a plate share its batch effect, and assignment predicts them jointly, so plates
are drawn and never wells, with all their wells and for both models at once. Cell types are strata: each keeps its number of plates.

Limit: plates of one experiment also share a batch effect and an arrangement of plate groups, and too few experiments are held out
to draw from. The interval is about other plates of these experiments, not about another experiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtr, stdtrit

from components.core.config import PromotionConfig
from components.core.config.file import Count, Fraction, FrozenModel
from components.core.evaluation.comparison.wells import COMPARED_STAGES, ComparedStage, count_plates
from components.core.evaluation.scores import OVERALL

SCHEMA = 2
Outcome = Literal["compared", "first_model", "without_holdout", "same_model"]


class ComparisonRow(FrozenModel):
    """Well top-1 of both models as fractions, over the wells of one cell type or of all."""

    name: str = Field(description="overall, or a cell type")
    experiments: Count
    plates: Count
    wells: Count
    champion: Fraction
    challenger: Fraction
    difference: float = Field(description="challenger less champion")
    low: float | None = Field(description="end of the difference's interval; None if a cell type has a single plate")
    high: float | None
    at_least_as_good: Fraction | None = Field(description="share of resamples in which the challenger is not worse")
    unknown_to_champion: int = Field(description="wells of labels that the champion's vocabulary lacks")


class Comparison(FrozenModel):
    """A challenger and the champion on held-out experiments that neither model saw."""

    promote: bool
    reason: str = Field(description="one line, for people")
    settings: PromotionConfig
    seed: int
    experiments: tuple[str, ...] = Field(description="that were compared, in the wells' order")
    unknown_to_champion: int = Field(
        description="wells of labels that the champion's vocabulary lacks; they count as wrong for it"
    )
    known_perturbations: ComparisonRow | None = Field(
        None,
        description="the wells whose label the champion knows, if there are others, which can hide that a challenger is worse on "
        "these. Shown, not deciding",
    )
    not_compared: tuple[str, ...] = Field((), description="cell types that have no held-out well")
    stages: dict[ComparedStage, tuple[ComparisonRow, ...]] = Field(
        description="rows, overall first, by stage; settings.stage decides"
    )

    @property
    def rows(self) -> tuple[ComparisonRow, ...]:
        """The rows that decide."""
        return self.stages[self.settings.stage]


class Decision(FrozenModel):
    """The decision about a challenger: the content of comparison.json.

    The outcomes: compared; first_model, there is no champion, and the challenger is promoted whatever its accuracy;
    without_holdout, no experiment is left that neither model saw; same_model, the challenger is the champion.
    """

    decision_schema: int = SCHEMA
    outcome: Outcome
    promote: bool
    reason: str = Field(description="one line, for people and for the champion's history")
    challenger: str = Field(description="short fingerprint")
    champion: str | None = Field(description="short fingerprint; None if there is none")
    comparison: Comparison | None = Field(None, description="if the models were compared")
    left_out: tuple[str, ...] = Field((), description="why other held-out experiments were not compared")


def compare(
    wells: pd.DataFrame, settings: PromotionConfig, seed: int = 0, cell_types: Sequence[str] = ()
) -> Comparison:
    """Compares two models on the same wells. Overall is over wells, so a cell type counts by its held-out wells.

    The same wells, settings and seed make the same decision.

    Args:
        wells: from paired_wells; at least one.
        settings: the stage, the margins and the bootstrap.
        seed: the bootstrap's seed.
        cell_types: the screen's cell types, in the order of the rows.
    """
    assert len(wells)
    present = list(dict.fromkeys(wells["cell_type"]))
    order = [name for name in dict.fromkeys([*cell_types, *present]) if name in present]
    stages = {stage: _rows(count_plates(wells, stage), order, settings, seed) for stage in COMPARED_STAGES}
    promote, reason = verdict(stages[settings.stage], settings)
    known = wells[wells["champion_knows"]]
    known_row = None
    if 0 < len(known) < len(wells):
        known_order = [name for name in order if name in set(known["cell_type"])]
        known_row = _rows(count_plates(known, settings.stage), known_order, settings, seed)[0]
    return Comparison(
        promote=promote,
        reason=reason,
        settings=settings,
        seed=seed,
        experiments=tuple(dict.fromkeys(wells["experiment"])),
        unknown_to_champion=len(wells) - len(known),
        known_perturbations=known_row,
        not_compared=tuple(name for name in cell_types if name not in present),
        stages=stages,
    )


def _rows(
    counts: pd.DataFrame, order: Sequence[str], settings: PromotionConfig, seed: int
) -> tuple[ComparisonRow, ...]:
    """Overall, then each cell type."""
    parts = {name: counts[counts["cell_type"] == name] for name in order}
    drawn = {name: resample(part, name, settings.resamples, seed) for name, part in parts.items()}

    def row(name: str, strata: Sequence[str]) -> ComparisonRow:
        plates = pd.concat([parts[stratum] for stratum in strata])
        wells, champion, challenger = (int(plates[column].sum()) for column in ("wells", "champion", "challenger"))
        # The plates of a cell type that has one do not vary, and an interval would take that for certainty.
        found = None
        if all(len(parts[stratum]) > 1 for stratum in strata):
            found = interval([drawn[stratum] for stratum in strata], settings.confidence)
        return ComparisonRow(
            name=name,
            experiments=plates["experiment"].nunique(),
            plates=len(plates),
            wells=wells,
            champion=champion / wells,
            challenger=challenger / wells,
            difference=(challenger - champion) / wells,
            low=found.low if found else None,
            high=found.high if found else None,
            at_least_as_good=found.at_least_as_good if found else None,
            unknown_to_champion=int(plates["unknown"].sum()),
        )

    return (row(OVERALL, order), *(row(name, [name]) for name in order))


class Resamples(NamedTuple):
    """Resamples of a cell type's P plates, arrays of shape (R,), int64.

    `gained_R`: wells that the challenger gets right less those that the champion does; `wells_R`: wells drawn.
    """

    gained_R: NDArray[np.int64]
    wells_R: NDArray[np.int64]
    plates: int


class DifferenceInterval(NamedTuple):
    """Interval of the difference in well top-1, challenger less champion; each end is a one-sided bound.

    `at_least_as_good` is the share of resamples in which the challenger is not worse.
    """

    low: float
    high: float
    at_least_as_good: float


def resample(counts: pd.DataFrame, name: str, resamples: int, seed: int) -> Resamples:
    """Draws P of a cell type's P plates with replacement, R times.

    Each half of the draws is assigned to the plates in one of two orders, both by the plates' counts: ascending by the champion's,
    then by the challenger's, and the other way round. So neither the names nor the order of the plates matter, and with champion
    and challenger exchanged the resamples are the same with the opposite sign.

    Args:
        counts: its plates, from count_plates.
        name: the cell type; it seeds the draws, so that they do not depend on other cell types.
        resamples: R, an even number.
        seed: the seed of all draws.
    """
    assert resamples % 2 == 0
    wells_P, champion_P, challenger_P = (
        counts[column].to_numpy(np.int64) for column in ("wells", "champion", "challenger")
    )
    plates = len(counts)
    rng = np.random.default_rng([seed, *name.encode()])
    times_RP = rng.multinomial(plates, np.full(plates, 1 / plates), size=resamples // 2)
    orders = [
        np.lexsort((challenger_P, champion_P, wells_P)),
        np.lexsort((champion_P, challenger_P, wells_P)),
    ]
    return Resamples(
        np.concatenate([times_RP @ (challenger_P - champion_P)[order] for order in orders]),
        np.concatenate([times_RP @ wells_P[order] for order in orders]),
        plates,
    )


def interval(cell_types: Sequence[Resamples], confidence: float) -> DifferenceInterval:
    """The interval of the difference over the wells of several cell types.

    With few plates, percentiles are too narrow twice: P plates resampled vary (P - 1)/P as much as they should, and their
    deviation is itself estimated. So farther percentiles are taken: those at which a normal variable exceeds t sqrt(P / (P - S)),
    S cell types, t of P - S degrees of freedom (Hesterberg 2015, doi:10.1080/00031305.2015.1089789, expanded percentiles, here
    for strata). The bounds are resamples themselves, the outer one if a percentile lies between two.

    Args:
        cell_types: at least one, each of at least two plates.
        confidence: one-sided, of either end.
    """
    difference_R = np.sort(sum(part.gained_R for part in cell_types) / sum(part.wells_R for part in cell_types))
    plates, strata = sum(part.plates for part in cell_types), len(cell_types)
    outside = int(tail(confidence, plates, strata) * (len(difference_R) - 1))
    return DifferenceInterval(
        low=float(difference_R[outside]),
        high=float(difference_R[-1 - outside]),
        at_least_as_good=float(np.mean(difference_R >= 0)),
    )


def tail(confidence: float, plates: int, strata: int) -> float:
    """The share of resamples beyond a one-sided bound, for plates of several strata (cell types), fewer than plates."""
    free = plates - strata
    return float(ndtr(-stdtrit(free, confidence) * math.sqrt(plates / free)))


def verdict(rows: Sequence[ComparisonRow], settings: PromotionConfig) -> tuple[bool, str]:
    """Applies the promotion rules: not worse overall by more than a margin (non-inferiority), no cell type measured much worse.

    Returns:
        The decision, and a line with every rule that refused, or with all that the challenger passed.
    """
    overall, *cell_types = rows
    refusals = too_few_plates({row.name: row.plates for row in cell_types}, settings)
    margin, measured = points(settings.margin), ""
    if not refusals:
        assert overall.low is not None
        assert overall.high is not None
        spread = f"{interval_name(settings)} {signed(overall.low)} to {signed(overall.high)} points"
        measured = f"{overall.name} {signed(overall.difference)} ({spread})"
        if overall.low <= -settings.margin:
            what = "is worse" if overall.high < -settings.margin else "may be worse"
            refusals.append(f"{measured} {what} by more than {margin}")
    allowed = settings.cell_type_margin
    if worse := [f"{row.name} {signed(row.difference)}" for row in cell_types if row.difference < -allowed]:
        refusals.append(f"{', '.join(worse)}: a cell type may be worse by {points(allowed)} at most")
    if refusals:
        return False, "; ".join(refusals)
    return True, f"{measured} is not worse by more than {margin}, and no cell type by more than {points(allowed)}"


def too_few_plates(plates: Mapping[str, int], settings: PromotionConfig) -> list[str]:
    """Why so many held-out plates, by cell type, cannot show whether a challenger is worse; empty if they can."""
    total, refusals = sum(plates.values()), []
    if total < settings.min_plates:
        refusals.append(
            f"{total} held-out plate{'' if total == 1 else 's'}: fewer than {settings.min_plates} (promotion.min_plates) show "
            "nothing; hold out more experiments"
        )
    if single := [cell_type for cell_type, count in plates.items() if count == 1]:
        refusals.append(
            f"{' and '.join(single)} with a single held-out plate, which does not show how plates differ; hold out two or more, "
            "or none"
        )
    return refusals


def interval_name(settings: PromotionConfig) -> str:
    """Name of the two-sided interval whose lower end is the one-sided bound, for example `90 % interval`."""
    return f"{100 * (2 * settings.confidence - 1):.6g} % interval"


def signed(fraction: float) -> str:
    """A difference in points (percent of wells), with its sign; zero has none."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def points(fraction: float) -> str:
    """A margin in points."""
    number = f"{100 * fraction:.6g}"
    return f"{number} point" if number == "1" else f"{number} points"
