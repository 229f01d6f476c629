"""Tables of compared wells from counts of correct wells per plate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from components.core.config import PromotionConfig
from components.core.evaluation.comparison.decision import Comparison, Decision, compare

QUICK = PromotionConfig(resamples=1000)
Plate = tuple[int, int, int]
"""Number of wells, and of those that the champion and the challenger classify correctly."""


def screen_wells(experiments: Mapping[str, Sequence[Plate]]) -> pd.DataFrame:
    """The champion classifies the first wells correctly and the challenger the last, so that their errors differ."""
    rows = [
        {
            "id_code": f"{experiment}_{plate}_B{n:03d}",
            "experiment": experiment,
            "plate": plate,
            "cell_type": experiment.partition("-")[0],
            "truth": "a",
            "champion_assigned": "a" if n < champion else "b",
            "challenger_assigned": "a" if n >= wells - challenger else "b",
        }
        for experiment, plates in experiments.items()
        for plate, (wells, champion, challenger) in enumerate(plates, 1)
        for n in range(wells)
    ]
    table = pd.DataFrame(rows)
    return table.assign(
        champion_raw=table["champion_assigned"], challenger_raw=table["challenger_assigned"], champion_knows=True
    )


def decided(experiments: Mapping[str, Sequence[Plate]], settings: PromotionConfig = QUICK) -> Comparison:
    return compare(screen_wells(experiments), settings)


def compared(comparison: Comparison) -> Decision:
    return Decision(
        outcome="compared", promote=comparison.promote, reason=comparison.reason, challenger="1a2b3c4d5e6f",
        champion="9f8e7d6c5b4a", comparison=comparison,
    )  # fmt: skip
