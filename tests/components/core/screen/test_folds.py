"""Folds: a partition of experiments, balanced by cell type and append-only; or of wells, even in every respect."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.config import FoldsConfig
from components.core.errors import InputError
from components.core.screen.folds import (
    DealtWell,
    assign_folds,
    chosen_split,
    deal_plates,
    deal_wells,
    experiment_folds,
    screen_folds,
    split_remarks,
)
from components.core.screen.wells import natural_key
from components.core.storage.manifest import PlateRecord
from tests.components.core.manifests import plate_record

sizes = st.dictionaries(st.sampled_from(["HEPG2", "HUVEC", "RPE", "U2OS"]), st.integers(1, 12), min_size=1)


def experiments(counts: dict[str, int]) -> dict[str, list[str]]:
    return {cell_type: [f"{cell_type}-{i}" for i in range(1, n + 1)] for cell_type, n in counts.items()}


@given(sizes, st.integers(2, 5), st.integers(1, 5))
def test_an_experiment_named_after_all_others_changes_no_earlier_fold(counts, count, added):
    screen = experiments(counts)
    if sum(counts.values()) < count:
        return
    first = assign_folds(screen, count, {})
    last = max(screen, key=natural_key)
    later = {**screen, last: screen[last] + [f"{last}-{100 + i}" for i in range(added)]}
    assert first.items() <= assign_folds(later, count, {}).items()


@given(sizes, st.integers(2, 5), st.integers(0, 4))
def test_any_seed_spreads_cell_types_evenly_and_keeps_known_folds(counts, count, seed):
    screen = experiments(counts)
    if sum(counts.values()) < count:
        return
    folds = assign_folds(screen, count, {}, seed)
    assert sorted(folds) == sorted(name for names in screen.values() for name in names)
    assert set(folds.values()) == set(range(count))
    for names in screen.values():
        per_fold = Counter(folds[name] for name in names)
        assert max(per_fold[f] for f in range(count)) - min(per_fold[f] for f in range(count)) <= 1
    shuffled = {cell_type: names[::-1] for cell_type, names in reversed(screen.items())}
    assert list(assign_folds(shuffled, count, {}, seed).items()) == list(folds.items())
    grown = {cell_type: [*names, f"{cell_type}-99"] for cell_type, names in screen.items()}
    assert folds.items() <= assign_folds(grown, count, folds, seed).items()


@pytest.mark.parametrize(
    ("experiments", "count", "known", "message"),
    [
        (3, 5, {}, r"folds\.count is 5, but the screen has 3"),
        (2, 2, {"HUVEC-1": 4}, r"HUVEC-1 has fold 4, but folds\.count is 2"),
        (2, 2, {"HUVEC-1": 0, "HUVEC-2": 0}, "leaves fold 1 without experiments"),
    ],
)
def test_rejects_impossible_folds(experiments, count, known, message):
    with pytest.raises(InputError, match=message):
        assign_folds({"HUVEC": [f"HUVEC-{n + 1}" for n in range(experiments)]}, count, known)


def test_listed_folds_may_overlap_and_others_are_held_out_by_none():
    screen = {"HUVEC": ["HUVEC-1", "HUVEC-2", "HUVEC-10"], "U2OS": ["U2OS-1"]}
    listed = FoldsConfig(count=2, validation=(("HUVEC-10", "U2OS-1"), ("HUVEC-2", "HUVEC-10")))
    expected = {"HUVEC-1": (2,), "HUVEC-2": (1,), "HUVEC-10": (0, 1), "U2OS-1": (0,)}
    assert experiment_folds(screen, listed) == expected
    later = {**screen, "HUVEC": ["HUVEC-0", *screen["HUVEC"]]}
    assert experiment_folds(later, listed) == {"HUVEC-0": (2,), **expected}, "append-only"
    with pytest.raises(
        InputError, match=r"folds\.validation: no labelled experiment .* is named U2OS-1; there are HUVEC-1"
    ):
        experiment_folds({"HUVEC": screen["HUVEC"]}, listed)


def screen_of(experiments: int, perturbations: int, missing: float, seed: int) -> list[DealtWell]:
    """Two cell types; each experiment holds every perturbation once, but for the missing wells."""
    rng = random.Random(seed)
    return [
        DealtWell(f"{name}_{k % 4}_{k}", name, str(k % 4), cell_type, f"sirna_{k}")
        for cell_type, count in (("HUVEC", experiments), ("U2OS", max(1, experiments // 2)))
        for name in (f"{cell_type}-{n}" for n in range(count))
        for k in rng.sample(range(perturbations), perturbations)
        if rng.random() >= missing
    ]


def unevenness(
    wells: list[DealtWell], folds: dict[str, int], count: int, owner: Callable[[DealtWell], Hashable]
) -> int:
    """The largest difference between two folds' shares of an owner's wells."""
    shares: dict[Hashable, Counter[int]] = {}
    for well in wells:
        shares.setdefault(owner(well), Counter())[folds[well.id_code]] += 1
    return max(max(share[f] for f in range(count)) - min(share[f] for f in range(count)) for share in shares.values())


@settings(max_examples=60, deadline=None)
@given(
    experiments=st.integers(1, 9),
    perturbations=st.integers(8, 40),
    missing=st.sampled_from([0.0, 0.05, 0.4]),
    count=st.integers(2, 7),
    seed=st.integers(0, 5),
)
def test_every_well_has_a_fold_and_experiments_perturbations_and_plates_are_even(
    experiments, perturbations, missing, count, seed
):
    wells = screen_of(experiments, perturbations, missing, seed)
    try:
        folds = deal_wells(wells, count, seed)
    except InputError:
        assert len(wells) < 6 * count
        return
    assert sorted(folds) == sorted(well.id_code for well in wells)
    assert set(folds.values()) == set(range(count))
    assert unevenness(wells, folds, count, lambda well: well.experiment) <= 1
    assert unevenness(wells, folds, count, lambda well: (well.cell_type, well.perturbation)) <= 1
    assert unevenness(wells, folds, count, lambda well: (well.experiment, well.plate)) <= 2


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_wells_does_not_matter(shuffler):
    wells = screen_of(3, 12, 0.1, 1)
    other = list(wells)
    shuffler.shuffle(other)
    assert list(deal_wells(wells, 3, 4).items()) == list(deal_wells(other, 3, 4).items())


@settings(max_examples=40, deadline=None)
@given(experiments=st.integers(1, 6), count=st.integers(2, 6), seed=st.integers(0, 3))
def test_a_plate_is_held_out_whole_and_folds_hold_as_many_plates_of_each_cell_type(experiments, count, seed):
    wells = screen_of(experiments, 24, 0.2, seed)
    plates = {(well.cell_type, well.experiment, well.plate) for well in wells}
    if count > len(plates):
        with pytest.raises(
            InputError, match=rf"folds\.count is {count}, but the screen has {len(plates)} labelled plates"
        ):
            deal_plates(wells, count, seed)
        return
    folds = deal_plates(wells, count, seed)
    held = {
        (*plate, fold)
        for plate in plates
        for fold in {folds[w.id_code] for w in wells if (w.cell_type, w.experiment, w.plate) == plate}
    }
    assert len(held) == len(plates)
    for cell_type in ("HUVEC", "U2OS"):
        shares = Counter(fold for of, _, _, fold in held if of == cell_type)
        assert max(shares[f] for f in range(count)) - min(shares[f] for f in range(count)) <= 1
    assert deal_plates(wells[::-1], count, seed) == folds


def plates_of(*held: str) -> list[PlateRecord]:
    """Labelled plates of one experiment that hold these treatments, one letter each."""
    return [
        plate_record(
            "A549-b1", f"BR{n:05}", {f"A{k + 1:02}": ("treatment", label) for k, label in enumerate(labels)}, True
        )
        for n, labels in enumerate(held)
    ]


@pytest.mark.parametrize(
    ("held", "split"),
    [
        (("abcd", "abcd"), "plate"),  # replicates
        (("abcd", "abcd", "abcde"), "plate"),  # few labels on one plate alone
        (("abcd",), "well"),
        (("aabb", "ccdd"), "well"),  # no network would learn the labels that it is scored on
    ],
)
def test_folds_of_a_single_experiment_hold_out_plates_or_wells_which_is_said(held, split):
    plates = plates_of(*held) if len(held) != 3 else plates_of(*held[:2] * 8, held[2])
    config = FoldsConfig(count=2)
    assert chosen_split(plates, config) == split
    remark, *_ = split_remarks(plates, config)
    assert f"one labelled experiment that is not held out, A549-b1: folds hold out {split}s" in remark
    experiments, wells = screen_folds(plates, config)
    assert experiments == {}
    assert set(wells.values()) == {0, 1}
    whole = [{wells[well.id_code] for well in plate.wells} for plate in plates]
    assert all(len(folds) == 1 for folds in whole) is (split == "plate")


@pytest.mark.parametrize("split", ["experiment", "plate", "well"])
def test_a_single_fold_learns_every_label(split):
    config, plates = FoldsConfig(count=1, split=split), plates_of("abcd", "efgh")
    assert chosen_split(plates, config) == "experiment", "nothing that the plate design could reveal is held out"
    assert split_remarks(plates, config) == []
    experiments, wells = screen_folds(plates, config)
    assert wells == {}
    assert experiments.keys() == {"A549-b1"}
    (folds,) = experiments.values()
    assert not set(folds) & set(config.trained), "no trained fold validates on it"
    assert min(folds) >= 0, "its labels are learned"


def test_labels_that_a_fold_of_plates_never_learns_are_named():
    (remark,) = split_remarks(plates_of("abcd", "abce", "abcf"), FoldsConfig(count=3, split="plate"))
    assert "3 labels are in one fold's plates, which its networks never learn: d, e, f;" in remark
    assert split_remarks(plates_of("abcd", "abcd"), FoldsConfig(count=2, split="plate")) == []
