from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from components.core.config import PromotionConfig
from components.core.evaluation.comparison.comparing import Comparison, compare
from tests.components.core.evaluation.comparison.compared import QUICK, decided, names, plate_wells, screen_wells

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
few_examples = settings(max_examples=40, deadline=None)
LENIENT = PromotionConfig(resamples=1000, min_plates=2)


def row(comparison: Comparison, name: str, stage: str = "assigned"):
    return next(each for each in comparison.stages[stage] if each.name == name)


def test_rows_count_wells_plates_and_experiments():
    found = decided(SCREEN)
    assert [each.name for each in found.rows] == ["overall", "HUVEC", "RPE"]
    overall, huvec, rpe = found.rows
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


def test_the_other_stage_is_shown_and_does_not_decide():
    wells = [
        replace(well, challenger=replace(well.challenger, raw="wrong"), champion=replace(well.champion, raw=well.truth))
        for well in screen_wells(SCREEN)
    ]
    wide = QUICK.model_copy(update={"margin": 0.1})
    assigned = compare(wells, wide)
    assert assigned.promote
    assert [each.difference for each in assigned.stages["raw"]] == [-1, -1, -1]
    assert assigned.rows == assigned.stages["assigned"] == decided(SCREEN).rows
    raw = compare(wells, wide.model_copy(update={"stage": "raw"}))
    assert not raw.promote
    assert raw.rows == raw.stages["raw"] == assigned.stages["raw"]


def test_the_same_seed_makes_the_same_comparison_and_another_seed_moves_the_bounds_a_little():
    first = decided(SCREEN, seed=4)
    assert first == decided(SCREEN, seed=4)
    other = decided(SCREEN, seed=5)
    assert other.rows != first.rows
    width = row(first, "overall").high - row(first, "overall").low
    assert row(other, "overall").low == pytest.approx(row(first, "overall").low, abs=0.2 * width)


def test_it_is_written_and_read_back():
    found = decided(SCREEN)
    content = found.model_dump_json()
    assert '"comparison_schema":1' in content
    assert Comparison.model_validate_json(content) == found


@few_examples
@given(SCREENS)
def test_identical_predictions_differ_by_nothing_and_pass(screen):
    assume(all(sum(len(p) for e, p in screen.items() if e[:4] == name[:4]) > 1 for name in screen))
    found = decided({name: [(n, right, right) for n, right, _ in plates] for name, plates in screen.items()}, LENIENT)
    same = [replace(well, challenger=well.champion) for well in screen_wells(screen)]
    for comparison in (found, compare(same, LENIENT)):
        assert comparison.promote
        for each in comparison.rows:
            assert (each.difference, each.low, each.high, each.at_least_as_good) == (0, 0, 0, 1)


@few_examples
@given(SCREENS)
def test_exchanging_champion_and_challenger_negates_everything(screen):
    wells = screen_wells(screen)
    there = compare(wells, LENIENT)
    back = compare([replace(well, champion=well.challenger, challenger=well.champion) for well in wells], LENIENT)
    for one, other in zip(there.rows, back.rows, strict=True):
        assert (one.champion, one.challenger, one.difference) == (other.challenger, other.champion, -other.difference)
        assert (one.low is None) == (other.low is None)
        if one.low is not None:
            assert (one.low, one.high) == (-other.high, -other.low)
            assert one.at_least_as_good + other.at_least_as_good >= 1  # ties are in both


@few_examples
@given(SCREENS, st.randoms(use_true_random=False))
def test_names_and_order_of_plates_and_wells_change_nothing(screen, rng: random.Random):
    wells = screen_wells(screen)
    plates = sorted({(well.experiment, well.plate) for well in wells})
    by_cell_type: dict[str, list[tuple[str, int]]] = {}
    for experiment, plate in plates:
        by_cell_type.setdefault(experiment[:3], []).append((experiment, plate))
    renamed = {}
    for members in by_cell_type.values():
        renamed.update(zip(members, rng.sample(members, len(members)), strict=True))
    moved = [
        replace(well, experiment=renamed[well.experiment, well.plate][0], plate=renamed[well.experiment, well.plate][1])
        for well in wells
    ]
    rng.shuffle(moved)
    order = list(dict.fromkeys(well.cell_type for well in wells))
    assert compare(moved, LENIENT, cell_types=order).rows == compare(wells, LENIENT, cell_types=order).rows


@few_examples
@given(SCREENS, st.lists(PLATE, min_size=2, max_size=4))
def test_a_further_cell_type_changes_no_other_row(screen, plates):
    before, after = decided(screen, LENIENT), decided({**screen, "HEPG2-1": plates}, LENIENT)
    assert after.rows[1:-1] == before.rows[1:]
    assert after.rows[-1].name == "HEPG2"


@few_examples
@given(
    st.dictionaries(
        st.sampled_from(["HUVEC-1", "RPE-1", "U2OS-1", "RPE-2"]),
        st.lists(
            st.integers(5, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), min_size=2, max_size=4
        ),
        min_size=1,
    ),
    st.sampled_from([0.0, 0.01, 0.03]),
)
def test_a_challenger_that_is_worse_on_every_plate_never_passes(screen, margin):
    # One well of 30 or fewer is more than every margin here.
    worse = {name: [(n, right, right - 1) for n, right in plates] for name, plates in screen.items()}
    allowed = PromotionConfig(resamples=1000, min_plates=2, margin=margin, cell_type_margin=1)
    found = decided(worse, allowed)
    assert not found.promote
    assert "overall" in found.reason


def test_wells_of_sirnas_that_the_champion_does_not_know_count_and_are_told_apart():
    wells = screen_wells(SCREEN)
    new = [
        replace(
            well, id_code=f"new {n}", truth="new", champion_knows=False, challenger=replace(names(True), assigned="new")
        )
        for n, well in enumerate(wells[:30])
    ]
    found = compare([*wells, *new], QUICK)
    assert found.unknown_to_champion == 30
    assert row(found, "overall").unknown_to_champion == row(found, "HUVEC").unknown_to_champion == 30
    assert row(found, "RPE").unknown_to_champion == 0
    assert row(found, "overall").difference == pytest.approx((8 + 30) / 339)
    assert found.known_sirnas == decided(SCREEN).rows[0]
    assert decided(SCREEN).known_sirnas is None


def test_cell_types_without_a_held_out_well_are_told_and_rows_follow_their_order():
    found = compare(screen_wells(SCREEN), QUICK, cell_types=["RPE", "U2OS", "HUVEC", "HEPG2"])
    assert [each.name for each in found.rows] == ["overall", "RPE", "HUVEC"]
    assert found.not_compared == ("U2OS", "HEPG2")
    assert found.promote == decided(SCREEN).promote


def test_a_cell_type_of_one_plate_has_no_interval():
    found = decided({**SCREEN, "U2OS-1": [(26, 20, 20)]})
    assert row(found, "U2OS").low is row(found, "U2OS").high is row(found, "U2OS").at_least_as_good is None
    assert row(found, "overall").low is None
    assert row(found, "HUVEC") == row(decided(SCREEN), "HUVEC")


def test_no_wells_is_an_error():
    with pytest.raises(ValueError, match="no wells to compare"):
        compare([], QUICK)


def test_a_screen_as_large_as_rxrx1_is_compared_in_well_under_a_second():
    rng = np.random.default_rng(0)
    wells = [
        well
        for name, experiments in {"HUVEC": 24, "RPE": 11, "HEPG2": 11, "U2OS": 5}.items()
        for experiment in range(experiments)
        for plate in range(1, 5)
        for well in plate_wells(f"{name}-{experiment}", plate, (277, *map(int, rng.integers(260, 277, 2))))
    ]
    start = time.process_time()
    found = compare(wells, PromotionConfig())
    assert row(found, "overall").plates == 204
    # Half of it on an idle core; the rest is for busy ones.
    assert time.process_time() - start < 3
