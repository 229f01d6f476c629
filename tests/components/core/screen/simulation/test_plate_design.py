"""The plate design of a simulated screen: groups, rotations, wells, labels."""

import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.config import PLATE_FORMATS, CompoundsConfig, ScreenConfig, SimulateConfig
from components.core.screen.simulation.plate_design import (
    USED_WELLS,
    SimulationSettings,
    design_screen,
    label_perturbations,
)


def screen(seed=0, **fields):
    return SimulationSettings(seed=seed, screen=ScreenConfig(sites=2), simulate=SimulateConfig(**fields))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), per_group=st.integers(1, 20))
def test_an_experiment_holds_every_treatment_once_and_a_plate_one_group(seed, per_group):
    plates = design_screen(screen(seed, treatments_per_group=per_group, missing_wells=0.0))
    members = defaultdict(set)
    seen = defaultdict(list)
    for plate in plates:
        treated = [well.perturbation for well in plate.wells if well.role == "treatment"]
        assert len({well.well for well in plate.wells}) == len(plate.wells)
        members[plate.group].add(frozenset(treated))
        seen[plate.experiment] += treated
    assert all(len(groups) == 1 for groups in members.values())
    assert all(sorted(perturbations) == list(range(4 * per_group)) for perturbations in seen.values())


def test_rotations_are_cyclic_and_only_unlabelled_experiments_use_the_fourth():
    plates = design_screen(screen(labelled={"HUVEC": 40}, unlabelled={"RPE": 4}))
    rotations = defaultdict(set)
    for experiment in {plate.experiment for plate in plates}:
        groups = [plate.group for plate in plates if plate.experiment == experiment]
        assert groups == [(groups[0] + i) % 4 for i in range(4)]
        rotations["RPE" if "RPE" in experiment else "HUVEC"].add(groups[0])
    assert rotations == {"HUVEC": {0, 1, 2}, "RPE": {0, 1, 2, 3}}


def test_a_plate_of_full_size_fills_all_308_used_wells():
    plates = design_screen(
        screen(treatments_per_group=277, positive_controls=30, missing_wells=0.0, labelled={"RPE": 1})
    )
    assert len(USED_WELLS) == 308
    assert all(sorted(USED_WELLS) == [well.well for well in plate.wells] for plate in plates)


@pytest.mark.parametrize("style", ["string", "integer"])
def test_labels_are_independent_of_the_group(style):
    labels = label_perturbations(3, SimulateConfig(treatments_per_group=50, label_style=style)).perturbations[:200]
    numbers = [int(label.removeprefix("sirna_")) for label in labels]
    assert len(set(numbers)) == 200
    assert (max(numbers) >= 200) == (style == "string"), "positives are interleaved"
    halves = Counter((number >= 100, index // 50) for index, number in enumerate(numbers))
    # Of the 50 perturbations of a group about half have a number in the upper half of the range.
    assert all(14 <= halves[True, group] <= 38 for group in range(4))


def test_wells_and_sites_go_missing_at_the_configured_rate_and_a_well_keeps_a_site():
    plates = design_screen(screen(labelled={"HUVEC": 10}, unlabelled={}, missing_wells=0.2, missing_sites=0.3))
    wells = [well for plate in plates for well in plate.wells]
    treated = sum(well.role == "treatment" for well in wells)
    strays = sum(well.role == "negative_control" and well.well != "B02" for well in wells)
    assert 0.75 < treated / (40 * 26) < 0.85
    assert 0.05 < strays / (40 * 26) < 0.15
    assert 0.25 < sum(well.sites == (1,) for well in wells) / len(wells) < 0.35
    assert {well.sites for well in wells} == {(1,), (1, 2)}


def test_a_screen_with_one_more_experiment_contains_the_smaller_one():
    small = design_screen(screen(labelled={"RPE": 2}, unlabelled={}))
    large = design_screen(screen(labelled={"RPE": 3}, unlabelled={}))
    assert large[: len(small)] == small


def compounds(**fields):
    return screen(
        labelled={"RPE": 2}, unlabelled={"U2OS": 1}, positive_controls=2, missing_wells=0.0,
        compounds=CompoundsConfig(
            count=5, replicates=4, doses=(0.5, 5.0), plates=3, negative_wells=6, positive_wells=2
        ),
        **fields,
    )  # fmt: skip


def test_without_a_design_every_plate_holds_the_same_compounds_at_other_wells():
    plates = design_screen(compounds(plate_format=96))
    contents = {tuple(sorted((w.label, w.dose or 0, w.replicate, w.role) for w in plate.wells)) for plate in plates}
    (content,) = contents
    assert Counter(role for *_, role in content) == {"treatment": 20, "positive_control": 4, "negative_control": 6}
    assert {dose for _, dose, _, role in content if role == "treatment"} == {0.5, 5.0}
    assert {label for label, *_, role in content if role == "negative_control"} == {"DMSO"}
    arrangements = {tuple((w.well, w.label) for w in plate.wells) for plate in plates}
    assert len(arrangements) == len({plate.plate for plate in plates}) == 9


def test_a_higher_dose_has_a_stronger_effect_and_the_highest_the_whole_one():
    strength = {w.dose: w.strength for plate in design_screen(compounds()) for w in plate.wells if w.dose}
    assert 0 < strength[0.5] < strength[5.0] == pytest.approx(1.0)


@pytest.mark.parametrize("plate_format", PLATE_FORMATS)
def test_plates_of_every_format_with_and_without_a_design_lie_within_it(plate_format):
    rows, columns = PLATE_FORMATS[plate_format]
    small = CompoundsConfig(count=2, replicates=1, plates=1, negative_wells=2, positive_wells=1)
    sizes = {"plate_format": plate_format, "positive_controls": 2, "treatments_per_group": 3, "missing_wells": 0.0}
    for fields, per_plate in (({}, 6), ({"compounds": small}, 6)):
        for plate in design_screen(screen(**sizes, **fields)):
            names = [re.fullmatch("(A?[A-Z])([0-9]{2})", well.well).groups() for well in plate.wells]
            numbers = [(26 * (len(row) - 1) + ord(row[-1]) - ord("A") + 1, int(column)) for row, column in names]
            assert len(set(numbers)) == per_plate
            assert numbers == sorted(numbers), "row-major order"
            assert all(row <= rows and column <= columns for row, column in numbers)


@pytest.mark.parametrize(
    ("fields", "room"),
    [
        ({"treatments_per_group": 278}, 277),
        ({"plate_format": 96, "positive_controls": 5, "treatments_per_group": 100}, 90),
        ({"plate_format": 6, "compounds": CompoundsConfig()}, 0),
    ],
)
def test_more_perturbations_than_wells_are_refused(fields, room):
    with pytest.raises(ValueError, match=f"must be at most {room}, "):
        SimulateConfig(**fields)
