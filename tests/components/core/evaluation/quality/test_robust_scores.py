from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.core.evaluation.quality.robust_scores import robust_scores

VALUES = st.lists(st.integers(-1000, 1000), min_size=1, max_size=40).map(lambda each: np.array(each, np.float64))


@given(VALUES, st.floats(0.1, 10), st.integers(-100, 100))
def test_unit_and_origin_do_not_matter(values: NDArray[np.float64], scale: float, shift: int) -> None:
    assert robust_scores(values * scale + shift) == pytest.approx(robust_scores(values), abs=1e-6)


def test_of_normal_values_they_are_standard_scores() -> None:
    values = np.random.default_rng(0).normal(5, 3, 20_000)
    assert robust_scores(values) == pytest.approx((values - 5) / 3, abs=0.2)


def test_outliers_do_not_hide_each_other() -> None:
    values = np.r_[np.random.default_rng(0).normal(0, 1, 90), np.full(10, 100.0)]
    assert (robust_scores(values)[90:] > 50).all()
    assert (np.abs((values - values.mean()) / values.std())[90:] < 4).all()  # as plain scores do


def test_where_most_are_equal_the_others_still_count() -> None:
    found = robust_scores(np.array([0.0] * 30 + [0.2]))
    assert (found[:30] == 0).all()
    assert found[30] == pytest.approx(31 / 1.2533)
    assert (robust_scores(np.full(5, 3.0)) == 0).all()


def test_an_unknown_value_changes_no_other_score() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = robust_scores(np.r_[values, np.nan])
    assert np.isnan(found[-1])
    assert found[:-1] == pytest.approx(robust_scores(values))
    assert np.isnan(robust_scores(np.array([np.nan]))).all()
