"""The configuration's section for promotion: what a challenger must show on held-out experiments to replace the champion.

No step reads it, so a change here recomputes nothing. Imports pydantic only. The defaults are for RxRx1's plates: 277 treatment
wells each, four per experiment, two or more experiments held out. There an equal challenger passes nine times out of ten as long as
at most 1.8 % of wells are classified correctly by only one of the models. A smaller holdout, or predictions that differ more,
need wider margins, or equal challengers are refused by chance.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.core.config.base import Fraction, FrozenModel


class PromotionConfig(FrozenModel):
    """When a challenger is promoted: not worse overall by more than a margin, and no cell type much worse."""

    stage: Literal["assigned", "raw"] = Field(
        "assigned",
        description="which predictions decide: assigned, what users get, or raw, the networks alone, if the plate design should "
        "not count. Raw predictions of two equal models differ in many more wells, so they need wider margins. The other "
        "stage is shown as well",
    )
    margin: Fraction = Field(
        0.01,
        description="well top-1, as a fraction, by which the challenger may be worse overall: the lower bound of its difference "
        "must be above -margin (non-inferiority). 0 asks for proof that it is better. Each promotion may lose this much "
        "again, so a series of them can drift",
    )
    cell_type_margin: Fraction = Field(
        0.03,
        description="well top-1, as a fraction, by which the measured accuracy of any cell type may be lower. Wider than margin, "
        "as a cell type has fewer wells; its confidence bound does not count, or most equal challengers would be refused",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95,
        description="of the one-sided lower bound; reports show the two-sided interval with this lower end, 90 % for 0.95",
    )
    resamples: Annotated[int, Field(ge=1000, multiple_of=2)] = Field(
        10_000, description="bootstrap resamples, an even number; with fewer the bound depends more on their seed"
    )
    min_plates: Annotated[int, Field(ge=2)] = Field(
        5,
        description="smallest number of held-out plates that decides. No resample is worse than the worst plate alone, so k "
        "plates can show at most 1 - 1/2^k: 5 for 0.95, 7 for 0.99. Five are more than one experiment of four, whose plates "
        "share a batch effect. Each cell type also needs two",
    )
