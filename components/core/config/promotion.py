"""The configuration's part for promotion: what a challenger must show on held-out experiments to replace the champion.

No step reads it, so that a change here makes nothing run again. Imports pydantic only. The defaults are for RxRx1's plates, 277
treatment wells each, four an experiment, two experiments or more held out: there an equal challenger passes nine times of ten as
long as at most 1.8 % of wells are named right by one of the models alone. A smaller holdout, or names that differ more, need
wider margins, or equal challengers are refused by chance.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.config.base import Fraction, FrozenModel


class PromotionConfig(FrozenModel):
    """When a challenger is promoted: not worse overall by more than a margin, and no cell type much worse."""

    stage: Literal["assigned", "raw"] = Field(
        "assigned",
        description="whose names decide: assigned, what users get, or raw, the networks alone, where the plate design is not "
        "to be leaned on. Raw names differ between two equal models in many more wells, so that they need wider margins. "
        "The other stage is shown beside it",
    )
    margin: Fraction = Field(
        0.01,
        description="well top-1, as a fraction, by which the challenger may be worse overall: the lower bound of its difference "
        "must be above -margin (non-inferiority). 0 asks for proof that it is better. Each promotion may lose so much "
        "again, so that a series of them can drift",
    )
    cell_type_margin: Fraction = Field(
        0.03,
        description="well top-1, as a fraction, by which the measured accuracy of any cell type may be lower. Wider than margin, "
        "for a cell type has fewer wells, and no bound is asked of it: one alone would refuse most equal challengers",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95,
        description="of the one-sided lower bound; shown is the two-sided interval that has it as its lower end, 90 % for 0.95",
    )
    resamples: Annotated[int, Field(ge=1000, multiple_of=2)] = Field(
        10_000, description="bootstrap resamples, an even number; fewer make the bound depend more on their seed"
    )
    min_plates: Annotated[int, Field(ge=2)] = Field(
        5,
        description="smallest number of held-out plates that decides. No resample is worse than the worst plate alone, so that k "
        "plates can show at most 1 - 1/2^k: 5 for 0.95, 7 for 0.99. Five are more than one experiment of four, whose plates "
        "share their batch effect. Each cell type needs two besides",
    )
