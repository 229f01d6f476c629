"""Folds of experiments: a partition, balanced by cell type, append-only."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.screen.folds import assign_folds
from components.core.screen.wells import natural_key

sizes = st.dictionaries(st.sampled_from(["HEPG2", "HUVEC", "RPE", "U2OS"]), st.integers(1, 12), min_size=1)


def experiments(counts: dict[str, int]) -> dict[str, list[str]]:
    return {cell_type: [f"{cell_type}-{i}" for i in range(1, n + 1)] for cell_type, n in counts.items()}


@given(sizes, st.integers(1, 6))
def test_each_experiment_has_one_fold_and_cell_types_are_spread_evenly(counts, count):
    screen = experiments(counts)
    if sum(counts.values()) < count:
        return
    folds = assign_folds(screen, count, {})
    assert sorted(folds) == sorted(name for names in screen.values() for name in names)
    assert set(folds.values()) == set(range(count))
    for names in screen.values():
        per_fold = Counter(folds[name] for name in names)
        assert max(per_fold[f] for f in range(count)) - min(per_fold[f] for f in range(count)) <= 1


@given(sizes, sizes, st.integers(2, 5))
def test_known_experiments_keep_their_fold_whatever_is_added(counts, more, count):
    if sum(counts.values()) < count:
        return
    first = assign_folds(experiments(counts), count, {})
    grown = {c: max(counts.get(c, 0), more.get(c, 0)) for c in {*counts, *more}}
    second = assign_folds(experiments(grown), count, first)
    assert first.items() <= second.items()
    assert len(second) == sum(grown.values())


@given(sizes, st.integers(2, 5), st.integers(1, 5))
def test_an_experiment_named_after_all_others_changes_no_earlier_fold(counts, count, added):
    screen = experiments(counts)
    if sum(counts.values()) < count:
        return
    first = assign_folds(screen, count, {})
    last = max(screen, key=natural_key)
    later = {**screen, last: screen[last] + [f"{last}-{100 + i}" for i in range(added)]}
    assert first.items() <= assign_folds(later, count, {}).items()


def test_order_of_the_input_does_not_matter():
    screen = experiments({"HUVEC": 11, "RPE": 4})
    shuffled = {cell_type: names[::-1] for cell_type, names in reversed(screen.items())}
    assert assign_folds(screen, 5, {}) == assign_folds(shuffled, 5, {})


def test_rxrx1_has_u2os_in_three_folds_only():
    folds = assign_folds(experiments({"HUVEC": 16, "RPE": 7, "HEPG2": 7, "U2OS": 3}), 5, {})
    assert len({fold for name, fold in folds.items() if name.startswith("U2OS")}) == 3
    assert sorted(Counter(folds.values()).values()) == [6, 6, 7, 7, 7]


def test_more_folds_than_experiments_is_an_error_that_names_both():
    with pytest.raises(InputError, match=r"folds\.count is 5, but the screen has 3"):
        assign_folds({"HUVEC": ["HUVEC-01", "HUVEC-02", "HUVEC-03"]}, 5, {})


def test_a_known_fold_that_does_not_exist_is_an_error():
    with pytest.raises(InputError, match=r"HUVEC-01 has fold 4, but folds\.count is 2"):
        assign_folds({"HUVEC": ["HUVEC-01", "HUVEC-02"]}, 2, {"HUVEC-01": 4})


def test_a_fold_that_known_ones_leave_empty_is_an_error():
    with pytest.raises(InputError, match="leaves fold 1 without experiments"):
        assign_folds({"HUVEC": ["HUVEC-01", "HUVEC-02"]}, 2, {"HUVEC-01": 0, "HUVEC-02": 0})


@given(sizes, st.integers(2, 5), st.integers(1, 4))
def test_any_seed_spreads_cell_types_evenly_and_keeps_known_folds(counts, count, seed):
    screen = experiments(counts)
    if sum(counts.values()) < count:
        return
    folds = assign_folds(screen, count, {}, seed)
    for names in screen.values():
        per_fold = Counter(folds[name] for name in names)
        assert max(per_fold[f] for f in range(count)) - min(per_fold[f] for f in range(count)) <= 1
    shuffled = {cell_type: names[::-1] for cell_type, names in reversed(screen.items())}
    assert list(assign_folds(shuffled, count, {}, seed).items()) == list(folds.items())
    grown = {cell_type: [*names, f"{cell_type}-99"] for cell_type, names in screen.items()}
    assert folds.items() <= assign_folds(grown, count, folds, seed).items()


def test_seeds_hold_different_experiments_out():
    screen = experiments({"HUVEC": 16, "RPE": 7, "HEPG2": 7, "U2OS": 3})
    deals = [assign_folds(screen, 5, {}, seed) for seed in range(20)]
    held_out = [frozenset(name for name, fold in deal.items() if fold == 0) for deal in deals]
    assert len(set(held_out)) == 20
    # Every experiment gets its turn: none is out of fold 0 in all of 20 deals.
    assert len(frozenset.union(*held_out)) >= 30
