"""Compared wells made from what both models name right, plate by plate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.core.config import PromotionConfig
from components.core.evaluation.comparison.compared_well import ComparedWell, Names
from components.core.evaluation.comparison.comparing import Comparison, compare

QUICK = PromotionConfig(resamples=1000)
Plate = tuple[int, int, int]
"""Wells, and how many of them the champion and the challenger name right."""


def names(right: bool, raw_right: bool | None = None) -> Names:
    return Names(raw="a" if (right if raw_right is None else raw_right) else "b", assigned="a" if right else "b")


def plate_wells(experiment: str, plate: int, counts: Plate) -> list[ComparedWell]:
    """The champion is right in the first wells and the challenger in the last, so that their wrong ones differ."""
    wells, champion, challenger = counts
    return [
        ComparedWell(
            id_code=f"{experiment}_{plate}_B{n:03d}",
            experiment=experiment,
            plate=plate,
            cell_type=experiment.partition("-")[0],
            truth="a",
            champion=names(n < champion),
            challenger=names(n >= wells - challenger),
        )
        for n in range(wells)
    ]


def screen_wells(experiments: Mapping[str, Sequence[Plate]]) -> list[ComparedWell]:
    return [
        well
        for experiment, plates in experiments.items()
        for number, counts in enumerate(plates, 1)
        for well in plate_wells(experiment, number, counts)
    ]


def decided(experiments: Mapping[str, Sequence[Plate]], settings: PromotionConfig = QUICK, seed: int = 0) -> Comparison:
    return compare(screen_wells(experiments), settings, seed)
