"""The paired bootstrap over plates: agreement with a plain loop, and the confidence that its bounds hold with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from components.core.evaluation.comparison.decision import interval, resample, tail

SCREEN = {
    "HUVEC": [(26, 20, 22), (25, 19, 19), (26, 24, 20), (26, 21, 25), (26, 20, 21), (24, 18, 22)],
    "RPE": [(26, 12, 20), (26, 20, 16), (26, 14, 14), (23, 15, 17)],
}


def counts(plates: Sequence[Sequence[int]]) -> pd.DataFrame:
    return pd.DataFrame(plates, columns=["wells", "champion", "challenger"])


def loop(screen: dict[str, list[tuple[int, int, int]]], resamples: int, seed: int) -> list[float]:
    """The differences of a bootstrap that draws one plate after the other."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        wells = gained = 0
        for plates in screen.values():
            for _ in plates:
                n, champion, challenger = plates[rng.integers(len(plates))]
                wells += n
                gained += challenger - champion
        found.append(gained / wells)
    return found


def test_agrees_with_a_loop_that_draws_plate_by_plate():
    found = [resample(counts(plates), name, 20_000, 0) for name, plates in SCREEN.items()]
    difference_R = sum(part.gained_R for part in found) / sum(part.wells_R for part in found)
    reference_R = np.array(loop(SCREEN, 20_000, 1))
    # Each mean and deviation is off by less than 0.01 of a deviation, in five of a million seeds.
    assert difference_R.mean() == pytest.approx(reference_R.mean(), abs=0.05 * reference_R.std())
    assert difference_R.std() == pytest.approx(reference_R.std(), rel=0.03)
    assert stats.ks_2samp(difference_R, reference_R).statistic < 0.02
    outside = tail(0.95, 10, 2)
    bounds = interval(found, 0.95)
    assert bounds.low == pytest.approx(np.quantile(reference_R, outside), abs=0.15 * reference_R.std())
    assert bounds.high == pytest.approx(np.quantile(reference_R, 1 - outside), abs=0.15 * reference_R.std())
    assert bounds.at_least_as_good == pytest.approx(np.mean(reference_R >= 0), abs=0.015)


def test_a_resample_draws_whole_plates_for_both_models():
    # Digits in base 10: a resample's sums show which plates were drawn, and that gains and wells are of the same ones.
    found = resample(counts([(10**n, 0, 10**n) for n in range(5)]), "RPE", 2000, 0)
    assert (found.gained_R == found.wells_R).all()
    drawn = np.array([[(wells // 10**n) % 10 for n in range(5)] for wells in found.wells_R])
    assert (drawn.sum(axis=1) == 5).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(5), abs=0.1)
    assert len(np.unique(drawn, axis=0)) > 100


def test_the_tail_is_that_of_a_t_interval_from_the_deviation_of_the_resamples():
    for plates, strata in ((8, 2), (5, 1), (204, 4)):
        free = plates - strata
        # n of n draws vary (n - 1)/n as much as they should.
        expected = stats.norm.sf(stats.t.ppf(0.95, free) * math.sqrt(plates / free))
        assert tail(0.95, plates, strata) == pytest.approx(expected)
    assert tail(0.95, 10**6, 4) == pytest.approx(0.05, abs=1e-4)


def covered(layout: Sequence[int], screens: int, seed: int) -> tuple[float, float]:
    """How often the lower and the upper bound hold if the models are equally good but plates favour one or the other."""
    rng = np.random.default_rng(seed)
    low = high = 0
    for screen in range(screens):
        parts = []
        for name, plates in enumerate(layout):
            accuracy_P = rng.normal(0.85, 0.03, plates)
            favour_P = rng.normal(0, 0.03, plates)
            champion_P = rng.binomial(100, accuracy_P)
            challenger_P = rng.binomial(100, np.clip(accuracy_P + favour_P, 0, 1))
            table = pd.DataFrame({"wells": 100, "champion": champion_P, "challenger": challenger_P})
            parts.append(resample(table, str(name), 400, screen))
        found = interval(parts, 0.95)
        low += found.low <= 0
        high += found.high >= 0
    return low / screens, high / screens


@pytest.mark.parametrize("layout", [(4, 4), (12, 4)])
def test_the_bounds_hold_with_their_nominal_confidence(layout: tuple[int, ...]):
    # 1,200 screens: 0.95 has a standard error of 0.0063; 0.925 to 0.975 are four of them. Plain percentiles miss that for (4, 4).
    low, high = covered(layout, 1200, 3)
    assert 0.925 <= low <= 0.975
    assert 0.925 <= high <= 0.975
