from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.prior.assignment import assign_plate

plates = st.tuples(st.integers(1, 7), st.integers(0, 3), st.integers(0, 2**32 - 1))


def scores(plate):
    wells, spare, seed = plate
    return np.random.default_rng(seed).standard_normal((wells, wells + spare))


@settings(max_examples=60, deadline=None)
@given(plates)
def test_naming_follows_the_wells_when_they_are_shuffled(plate):
    log_prob = scores(plate)
    order = np.random.default_rng(plate[2]).permutation(len(log_prob))
    assert (assign_plate(log_prob[order]) == assign_plate(log_prob)[order]).all()


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 6), st.integers(0, 1), st.integers(0, 2**32 - 1)))
def test_agrees_with_trying_every_naming_on_six_wells(plate):
    log_prob = scores(plate)
    wells, sirnas = log_prob.shape
    every = np.array(list(permutations(range(sirnas), wells)))
    best = log_prob[np.arange(wells), every].sum(axis=1).max()
    named = assign_plate(log_prob)
    assert len(set(named.tolist())) == wells
    assert log_prob[np.arange(wells), named].sum() == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(2, 7), st.just(0), st.integers(0, 2**32 - 1)))
def test_row_and_column_constants_do_not_change_a_square_plate(plate):
    log_prob = scores(plate)
    rng = np.random.default_rng(plate[2])
    shifted = log_prob + rng.normal(size=(len(log_prob), 1)) * 5 + rng.normal(size=len(log_prob)) * 5
    assert (assign_plate(shifted) == assign_plate(log_prob)).all()


def test_one_to_one_moves_the_less_certain_of_two_rivals():
    assert assign_plate(np.log([[0.9, 0.1], [0.6, 0.4]])).tolist() == [0, 1]


def test_more_wells_than_sirnas_is_an_error_that_names_both_numbers():
    with pytest.raises(ValueError, match="3 wells cannot each hold a different one of 2 siRNAs"):
        assign_plate(np.zeros((3, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(value):
    log_prob = np.zeros((2, 3))
    log_prob[1, 2] = value
    with pytest.raises(ValueError, match="finite"):
        assign_plate(log_prob)
