import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.prior.plate_groups import (
    LabelledWell,
    NoPlateDesignError,
    PlateGroups,
    candidates,
    check_correspondence,
    learn_groups,
)

RXRX1 = Path(__file__).resolve().parents[4] / ".." / "shared" / "rxrx1"
TREATMENTS = [f"siRNA-{letter}{n}" for letter in "PQRS" for n in range(12)]


def screen(turns: dict[str, int]) -> list[LabelledWell]:
    """Labelled wells of experiments whose plate p (from 1) holds group (p - 1 + turn) of contiguous groups."""
    return [
        LabelledWell(experiment, str(plate + 1), perturbation)
        for experiment, turn in turns.items()
        for plate in range(4)
        for perturbation in TREATMENTS[(plate + turn) % 4 * 12 :][:12]
    ]


def as_partition(groups: PlateGroups, labels: list[str]) -> set[frozenset[str]]:
    return {frozenset(labels[k] for k in classes) for classes in groups.members}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), missing=st.integers(0, 10))
def test_groups_do_not_depend_on_order_or_a_few_missing_wells(seed, missing):
    rng = np.random.default_rng(seed)
    labels = [TREATMENTS[i] for i in rng.permutation(len(TREATMENTS))]
    wells = screen({"A-1": 0, "A-2": 1, "B-1": 3})
    kept = [wells[i] for i in rng.permutation(len(wells))][missing:]
    seen = {well.perturbation for well in kept}
    if len(seen) < len(labels):
        return
    groups = learn_groups(kept, labels)
    assert as_partition(groups, labels) == {frozenset(TREATMENTS[g * 12 : g * 12 + 12]) for g in range(4)}
    for experiment, placed in groups.arrangements.items():
        for plate, group in placed.items():
            on_plate = {well.perturbation for well in kept if (well.experiment, well.plate) == (experiment, plate)}
            assert on_plate <= {labels[k] for k in groups.members[group]}


def test_tolerates_a_missing_plate():
    wells = [w for w in screen({"A-1": 0, "A-2": 1}) if (w.experiment, w.plate) != ("A-2", "3")]
    assert learn_groups(wells, TREATMENTS).arrangements["A-2"] == {"1": 1, "2": 2, "4": 0}


def test_rejects_a_perturbation_in_two_groups():
    wells = screen({"A-1": 0, "A-2": 1, "B-1": 3})
    wells.append(LabelledWell("A-2", "4", TREATMENTS[20]))
    with pytest.raises(InputError, match=r"A-2 plate 4: siRNA-Q8 is in two plate groups") as caught:
        learn_groups(wells, TREATMENTS)
    assert not isinstance(caught.value, NoPlateDesignError)


def test_rejects_more_groups_than_plates():
    labels = TREATMENTS + [f"other-{n}" for n in range(12)]
    wells = screen({"A-1": 0, "A-2": 1}) + [LabelledWell("A-3", "2", f"other-{n}") for n in range(12)]
    with pytest.raises(
        InputError, match="5 groups of treatments but experiments have 4 plates; experiment A-3 plate 2"
    ):
        learn_groups(wells, labels)


def test_unseen_perturbations_join_the_only_group_with_room():
    wells = [w for w in screen({"A-1": 0, "A-2": 1}) if w.perturbation not in TREATMENTS[13:15]]
    groups = learn_groups(wells, TREATMENTS)
    assert as_partition(groups, TREATMENTS) == as_partition(learn_groups(screen({"A-1": 0}), TREATMENTS), TREATMENTS)


def test_rejects_unseen_perturbations_of_unknown_group():
    wells = [w for w in screen({"A-1": 0}) if w.perturbation not in (TREATMENTS[0], TREATMENTS[30])]
    with pytest.raises(InputError, match=r"siRNA-P0 is on no labelled plate.*2 such"):
        learn_groups(wells, TREATMENTS)


@pytest.mark.parametrize(
    "layout",
    ["every plate holds all", "scattered at random", "no labels", "twice on a plate", "numbered on", "nine plates"],
)
def test_a_screen_without_plate_design_is_recognised(layout):
    rng = np.random.default_rng(0)
    if layout == "every plate holds all":
        wells = [LabelledWell(e, p, s) for e in ("A-1", "A-2") for p in ("1", "2") for s in TREATMENTS]
    elif layout == "scattered at random":
        wells = [
            LabelledWell(e, str(int(p) + 1), s)
            for e in ("A-1", "A-2", "A-3")
            for p, s in zip(rng.permutation(np.arange(48) % 4), TREATMENTS, strict=True)
        ]
    elif layout == "no labels":
        wells = []
    elif layout == "numbered on":  # over the whole campaign
        wells = [*screen({"A-1": 0}), *(w._replace(plate=str(int(w.plate) + 4)) for w in screen({"A-2": 1}))]
    elif layout == "nine plates":
        wells = [LabelledWell(e, str(k % 9), TREATMENTS[k]) for e in ("A-1", "A-2") for k in range(45)]
    else:
        wells = [*screen({"A-1": 0}), LabelledWell("A-1", "1", TREATMENTS[0])]
    with pytest.raises(NoPlateDesignError, match=r"set prior\.enabled to false"):
        learn_groups(wells, TREATMENTS)


def test_plates_correspond_if_most_names_are_in_several_experiments():
    check_correspondence([("A", "x"), ("A", "y")])
    check_correspondence([("A", "1"), ("A", "2"), ("A", "3"), ("B", "2"), ("B", "3"), ("B", "4")])
    with pytest.raises(NoPlateDesignError, match=r"A has BR2, BR10, B has BR31, BR32") as caught:
        check_correspondence([("A", "BR10"), ("A", "BR2"), ("B", "BR31"), ("B", "BR32"), ("C", "BR2")])
    assert "prior.enabled" not in caught.value.reason


def read(name: str) -> list[dict[str, str]]:
    if not RXRX1.is_dir():
        pytest.skip("shared/rxrx1 (real metadata) is not beside the repository")
    with (RXRX1 / name).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_rxrx1_groups_and_rotations_agree_with_the_published_ones():
    rows = read("train.csv")
    labels = sorted({row["sirna"] for row in rows})
    groups = learn_groups([LabelledWell(r["experiment"], r["plate"], r["sirna"]) for r in rows], labels)
    assert [len(classes) for classes in groups.members] == [277] * 4

    # Same rotation here if and only if same assignment there: the partitions of the labelled experiments agree.
    published = {row["experiment"]: int(row["assignment"]) for row in read("exp_to_group.csv") if row["experiment"]}
    by_rotation, by_assignment = defaultdict(set), defaultdict(set)
    for experiment, placed in groups.arrangements.items():
        by_rotation[tuple(placed[plate] for plate in groups.plates)].add(experiment)
        by_assignment[published[experiment]].add(experiment)
    assert sorted(by_rotation.values(), key=sorted) == sorted(by_assignment.values(), key=sorted)
    assert sorted(map(len, by_rotation.values())) == [4, 7, 22]

    # The published table has a perturbation's plate under each assignment, p0 to p3. The fourth rotation, seen in unlabelled
    # experiments only, is the one that the cycle leaves.
    table = [tuple(row[f"p{a}"] for a in range(4)) for row in read("plate_groups.csv")]
    of_assignment = {published[next(iter(members))]: rotation for rotation, members in by_rotation.items()}
    (unseen,) = {0, 1, 2, 3} - set(of_assignment)
    (rotation,) = set(candidates(groups, "cyclic")) - set(by_rotation)
    first = of_assignment[0]
    assert {(groups.plates[first.index(g)], groups.plates[rotation.index(g)]) for g in range(4)} == {
        (row[0], row[unseen]) for row in table
    }
