"""Each rail alone: what it lets pass, what it refuses, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from components.core.config import PromotionConfig
from components.core.evaluation.comparison.rails import points, signed, verdict
from components.core.evaluation.comparison.row import Row
from tests.components.core.evaluation.comparison.compared import QUICK, decided

SETTINGS = PromotionConfig()


def row(
    name: str = "overall", difference: float = 0.0, half: float | None = 0.005, plates: int = 8, **fields: Any
) -> Row:
    return Row(
        name=name,
        experiments=2,
        plates=plates,
        wells=1000,
        champion=0.5,
        challenger=0.5 + difference,
        difference=difference,
        low=None if half is None else difference - half,
        high=None if half is None else difference + half,
        at_least_as_good=None if half is None else 0.5,
        unknown_to_champion=0,
        **fields,
    )


def test_passing_every_rail():
    assert verdict([row(difference=0.012, half=0.016), row("RPE", -0.02)], SETTINGS) == (
        True,
        "overall +1.20 (90 % interval -0.40 to +2.80 points) is not worse by more than 1 point, and no cell type by more than "
        "3 points",
    )


@pytest.mark.parametrize(("low", "passes"), [(-0.0099, True), (-0.01, False), (-0.0101, False)])
def test_the_lower_bound_must_be_above_the_margin(low, passes):
    found = row(difference=0.0, half=-low)
    assert verdict([found, row("RPE")], SETTINGS)[0] is passes


def test_overall_may_be_or_is_worse():
    assert verdict([row(difference=-0.002, half=0.014), row("RPE")], SETTINGS) == (
        False,
        "overall -0.20 (90 % interval -1.60 to +1.20 points) may be worse by more than 1 point",
    )
    assert verdict([row(difference=-0.015), row("RPE")], SETTINGS)[1].endswith("may be worse by more than 1 point"), (
        "at -1.00"
    )
    assert verdict([row(difference=-0.02), row("RPE")], SETTINGS) == (
        False,
        "overall -2.00 (90 % interval -2.50 to -1.50 points) is worse by more than 1 point",
    )


def test_no_gain_elsewhere_pays_for_a_cell_type():
    assert verdict([row(difference=0.05), row("HUVEC", 0.2), row("RPE", -0.048), row("U2OS", -0.0301)], SETTINGS) == (
        False,
        "RPE -4.80, U2OS -3.01: a cell type may be worse by 3 points at most",
    )
    assert verdict([row(difference=0.05), row("RPE", -0.03)], SETTINGS)[0], "as much as the margin is not more"


def test_all_refusals_are_told():
    promote, reason = verdict([row(difference=-0.02), row("RPE", -0.05)], SETTINGS)
    assert not promote
    assert reason.count("; ") == 1
    assert "overall -2.00" in reason
    assert "RPE -5.00" in reason


def test_a_margin_of_zero_asks_for_proof_that_it_is_better():
    strict = PromotionConfig(margin=0)
    assert not verdict([row(difference=0.0, half=0.0), row("RPE")], strict)[0]
    assert not verdict([row(difference=0.004, half=0.005), row("RPE")], strict)[0]
    assert verdict([row(difference=0.006, half=0.005), row("RPE")], strict)[0]


def test_too_few_plates_refuse_whatever_they_show():
    assert verdict([row(difference=0.1, half=0, plates=4), row("RPE", 0.1, plates=4)], SETTINGS) == (
        False,
        "4 held-out plates, where fewer than 5 (promotion.min_plates) show nothing; hold out more experiments",
    )
    assert verdict([row(plates=5), row("RPE", plates=5)], SETTINGS)[0]


def test_one_plate_has_no_variance_and_is_refused_not_promoted():
    assert decided({"RPE-1": [(26, 10, 20)]}).reason == (
        "1 held-out plate, where fewer than 5 (promotion.min_plates) show nothing; hold out more experiments; RPE with a single "
        "held-out plate, which does not show how plates differ; hold out two or more, or none"
    )
    # Enough plates in all, but strata of one plate each do not vary.
    single = decided({f"{name}-1": [(26, 20, 20)] for name in "ABCDEF"})
    assert not single.promote
    assert single.reason.startswith("A and B and C and D and E and F with a single held-out plate")
    assert not decided({"HUVEC-1": [(26, 20, 26)] * 8, "U2OS-1": [(26, 20, 26)]}).promote


def test_settings_decide():
    screen = {"HUVEC-1": [(100, 90, 88), (100, 90, 89), (100, 90, 90)], "RPE-1": [(100, 90, 86), (100, 90, 88)]}
    lenient = {"margin": 0.06, "cell_type_margin": 0.04}
    assert decided(screen, QUICK.model_copy(update=lenient)).promote
    assert not decided(screen, QUICK.model_copy(update={**lenient, "margin": 0.02})).promote
    assert not decided(screen, QUICK.model_copy(update={**lenient, "cell_type_margin": 0.02})).promote
    assert not decided(screen, QUICK.model_copy(update={**lenient, "min_plates": 6})).promote
    wide, narrow = (
        decided(screen, QUICK.model_copy(update={"confidence": confidence})).rows[0] for confidence in (0.95, 0.7)
    )
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_numbers_for_people():
    assert (signed(0.0123), signed(-0.00001), signed(0.0), signed(-0.2)) == ("+1.23", "0.00", "0.00", "-20.00")
    assert (points(0.01), points(0.03), points(0.005), points(0)) == ("1 point", "3 points", "0.5 points", "0 points")
