"""A comparison of two models and the promotion rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from components.core.config import PromotionConfig
from components.core.evaluation.comparison.decision import ComparisonRow, compare, verdict
from tests.components.core.evaluation.comparison.screens import QUICK, decided, screen_wells

SCREEN = {
    "HUVEC-05": [(26, 24, 25), (26, 25, 25), (25, 25, 24), (26, 24, 26)],
    "HUVEC-06": [(26, 20, 25), (26, 25, 24), (26, 22, 24), (26, 24, 24)],
    "RPE-04": [(26, 22, 24), (26, 24, 20), (26, 20, 20), (24, 22, 24)],
}
PLATE = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))
SCREENS = st.fixed_dictionaries(
    {name: st.lists(PLATE, min_size=2, max_size=5) for name in ("HUVEC-1", "RPE-1")},
    optional={name: st.lists(PLATE, min_size=1, max_size=4) for name in ("HUVEC-2", "U2OS-1")},
)
few_examples = settings(max_examples=25, deadline=None)
LENIENT = PromotionConfig(resamples=1000, min_plates=2)
DEFAULTS = PromotionConfig()


def exchanged(wells: pd.DataFrame) -> pd.DataFrame:
    names = {f"{a}_{stage}": f"{b}_{stage}" for a, b in (("champion", "challenger"), ("challenger", "champion"))
             for stage in ("assigned", "raw")}  # fmt: skip
    return wells.rename(columns=names)


def test_rows_count_wells_plates_and_experiments():
    found = decided(SCREEN)
    overall, huvec, rpe = found.rows
    assert [each.name for each in found.rows] == ["overall", "HUVEC", "RPE"]
    assert (overall.experiments, overall.plates, overall.wells) == (3, 12, 309)
    assert (huvec.experiments, huvec.plates, huvec.wells) == (2, 8, 207)
    assert (rpe.champion, rpe.challenger, rpe.difference) == (88 / 102, 88 / 102, 0.0)
    assert huvec.champion == (24 + 25 + 25 + 24 + 20 + 25 + 22 + 24) / 207
    assert overall.difference == pytest.approx(8 / 309)
    assert found.experiments == ("HUVEC-05", "HUVEC-06", "RPE-04")
    for each in found.rows:
        assert each.low < each.difference < each.high
        assert 0 < each.at_least_as_good <= 1
    assert rpe.high - rpe.low > huvec.high - huvec.low


def test_only_the_configured_stage_decides():
    wells = screen_wells(SCREEN)
    wells["challenger_raw"], wells["champion_raw"] = "wrong", wells["truth"]
    wide = QUICK.model_copy(update={"margin": 0.1})
    assigned, raw = compare(wells, wide), compare(wells, wide.model_copy(update={"stage": "raw"}))
    assert assigned.promote
    assert assigned.rows == decided(SCREEN).rows
    assert not raw.promote
    assert [each.difference for each in raw.rows] == [-1, -1, -1]
    assert raw.stages == assigned.stages


@few_examples
@given(SCREENS)
def test_identical_predictions_do_not_differ_and_pass(screen):
    assume(all(sum(len(p) for e, p in screen.items() if e[:4] == name[:4]) > 1 for name in screen))
    wells = screen_wells(screen)
    same = wells.assign(challenger_assigned=wells["champion_assigned"], challenger_raw=wells["champion_raw"])
    as_many = decided({name: [(n, right, right) for n, right, _ in plates] for name, plates in screen.items()}, LENIENT)
    for comparison in (as_many, compare(same, LENIENT)):
        assert comparison.promote
        for each in comparison.rows:
            assert (each.difference, each.low, each.high, each.at_least_as_good) == (0, 0, 0, 1)


@few_examples
@given(SCREENS)
def test_exchanging_champion_and_challenger_negates_everything(screen):
    wells = screen_wells(screen)
    there, back = compare(wells, LENIENT), compare(exchanged(wells), LENIENT)
    for one, other in zip(there.rows, back.rows, strict=True):
        assert (one.champion, one.challenger, one.difference) == (other.challenger, other.champion, -other.difference)
        assert (one.low is None) == (other.low is None)
        if one.low is not None:
            assert (one.low, one.high) == (-other.high, -other.low)
            assert one.at_least_as_good + other.at_least_as_good >= 1  # ties are in both


@few_examples
@given(SCREENS, st.integers(0, 1000))
def test_names_and_order_of_plates_and_wells_do_not_matter(screen, seed):
    wells = screen_wells(screen)
    rng = np.random.default_rng(seed)
    moved = []
    for _, members in wells.groupby("cell_type", sort=False):
        plates = list(dict.fromkeys(zip(members["experiment"], members["plate"], strict=True)))
        renamed = dict(zip(plates, (plates[n] for n in rng.permutation(len(plates))), strict=True))
        new = [renamed[key] for key in zip(members["experiment"], members["plate"], strict=True)]
        moved.append(members.assign(experiment=[name for name, _ in new], plate=[plate for _, plate in new]))
    shuffled = pd.concat(moved).sample(frac=1, random_state=seed)
    order = list(dict.fromkeys(wells["cell_type"]))
    assert compare(shuffled, LENIENT, cell_types=order).rows == compare(wells, LENIENT, cell_types=order).rows


@few_examples
@given(SCREENS, st.lists(PLATE, min_size=2, max_size=4))
def test_a_further_cell_type_changes_no_other_row(screen, plates):
    before, after = decided(screen, LENIENT), decided({**screen, "HEPG2-1": plates}, LENIENT)
    assert after.rows[1:-1] == before.rows[1:]
    assert after.rows[-1].name == "HEPG2"


SOME_RIGHT = st.integers(5, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
NAMES = st.sampled_from(["HUVEC-1", "RPE-1", "U2OS-1", "RPE-2"])


@few_examples
@given(
    st.dictionaries(NAMES, st.lists(SOME_RIGHT, min_size=2, max_size=4), min_size=1), st.sampled_from([0.0, 0.01, 0.03])
)
def test_a_challenger_that_is_worse_on_every_plate_never_passes(screen, margin):
    # One well of 30 or fewer is more than every margin here.
    worse = {name: [(n, right, right - 1) for n, right in plates] for name, plates in screen.items()}
    found = decided(worse, PromotionConfig(resamples=1000, min_plates=2, margin=margin, cell_type_margin=1))
    assert not found.promote
    assert "overall" in found.reason


def test_wells_of_perturbations_unknown_to_the_champion_count_and_are_shown_apart():
    wells = screen_wells(SCREEN)
    new = wells.iloc[:30].assign(truth="new", champion_knows=False, challenger_assigned="new")
    found = compare(pd.concat([wells, new]), QUICK)
    assert found.unknown_to_champion == 30
    assert [each.unknown_to_champion for each in found.rows] == [30, 30, 0]
    assert found.rows[0].difference == pytest.approx((8 + 30) / 339)
    assert found.known_perturbations == decided(SCREEN).rows[0]
    ordered = compare(wells, QUICK, cell_types=["RPE", "U2OS", "HUVEC"])
    assert [each.name for each in ordered.rows] == ["overall", "RPE", "HUVEC"]
    assert (ordered.not_compared, ordered.known_perturbations) == (("U2OS",), None)


def test_a_cell_type_of_one_plate_has_no_interval():
    found = decided({**SCREEN, "U2OS-1": [(26, 20, 20)]})
    overall, huvec, _, single = found.rows
    assert single.low is single.high is single.at_least_as_good is overall.low is None
    assert huvec == decided(SCREEN).rows[1]


def row(
    name: str = "overall", difference: float = 0.0, half: float | None = 0.005, plates: int = 8, **fields: Any
) -> ComparisonRow:
    return ComparisonRow(
        name=name, experiments=2, plates=plates, wells=1000, champion=0.5, challenger=0.5 + difference,
        difference=difference, low=None if half is None else difference - half,
        high=None if half is None else difference + half, at_least_as_good=None if half is None else 0.5,
        unknown_to_champion=0, **fields,
    )  # fmt: skip


def test_the_lower_bound_must_be_above_the_margin():
    for low, passes in ((-0.0099, True), (-0.01, False), (-0.0101, False)):
        assert verdict([row(half=-low), row("RPE")], DEFAULTS)[0] is passes
    strict = PromotionConfig(margin=0)
    for difference, half, passes in ((0.0, 0.0, False), (0.004, 0.005, False), (0.006, 0.005, True)):
        assert verdict([row(difference=difference, half=half), row("RPE")], strict)[0] is passes


def test_a_gain_elsewhere_does_not_make_up_for_a_worse_cell_type():
    assert verdict([row(difference=0.05), row("HUVEC", 0.2), row("RPE", -0.048), row("U2OS", -0.0301)], DEFAULTS) == (
        False,
        "RPE -4.80, U2OS -3.01: a cell type may be worse by 3 points at most",
    )
    assert verdict([row(difference=0.05), row("RPE", -0.03)], DEFAULTS)[0], "as much as the margin is not more"


def test_too_few_plates_are_refused_at_any_difference():
    promote, reason = verdict([row(difference=0.1, half=0, plates=4), row("RPE", 0.1, plates=4)], DEFAULTS)
    assert not promote
    assert reason.startswith("4 held-out plates: fewer than 5 (promotion.min_plates)")
    assert verdict([row(plates=5), row("RPE", plates=5)], DEFAULTS)[0]
    # Enough plates in all, but strata of one plate each do not vary.
    single = decided({f"{name}-1": [(26, 20, 20)] for name in "ABCDEF"})
    assert not single.promote
    assert single.reason.startswith("A and B and C and D and E and F with a single held-out plate")
    assert not decided({"HUVEC-1": [(26, 20, 26)] * 8, "U2OS-1": [(26, 20, 26)]}).promote


def test_settings_decide():
    screen = {"HUVEC-1": [(100, 90, 88), (100, 90, 89), (100, 90, 90)], "RPE-1": [(100, 90, 86), (100, 90, 88)]}
    lenient = {"margin": 0.06, "cell_type_margin": 0.04}
    assert decided(screen, QUICK.model_copy(update=lenient)).promote
    for strict in ({"margin": 0.02}, {"cell_type_margin": 0.02}, {"min_plates": 6}):
        assert not decided(screen, QUICK.model_copy(update={**lenient, **strict})).promote
    wide, narrow = (
        decided(screen, QUICK.model_copy(update={"confidence": confidence})).rows[0] for confidence in (0.95, 0.7)
    )
    assert wide.low < narrow.low <= narrow.high < wide.high
