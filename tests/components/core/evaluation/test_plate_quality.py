from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from components.core.evaluation.plate_quality import confidence_by_plate, drift, log_distance
from tests.components.core.evaluation.predicted import predictions

COUNTS = st.lists(st.integers(0, 9), min_size=256, max_size=256).map(np.array).filter(lambda counts: counts.any())


def plates(*brightness: float, seed: int = 0) -> NDArray[np.int64]:
    """Histograms of two channels of plates whose light is so many times the usual."""
    rng = np.random.default_rng(seed)
    shapes = (rng.gamma(4, 10, (2, 5000)) for _ in brightness)
    levels = [(shape * light).clip(0, 255).astype(int) for shape, light in zip(shapes, brightness, strict=True)]
    return np.array([[np.bincount(channel, minlength=256) for channel in plate] for plate in levels])


@given(COUNTS, COUNTS)
def test_distance_agrees_with_scipy(one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    levels = np.log1p(np.arange(256))
    assert log_distance(one, other) == pytest.approx(wasserstein_distance(levels, levels, one, other), abs=1e-9)


@given(COUNTS, COUNTS, st.integers(2, 50))
def test_it_is_a_distance_and_how_many_pixels_there_are_does_not_matter(one, other, times) -> None:
    assert log_distance(one, one) == 0
    assert log_distance(one, other) == pytest.approx(log_distance(other, one), abs=1e-12)
    assert log_distance(one, times * other) == pytest.approx(log_distance(one, other), abs=1e-12)


def test_more_light_is_farther_by_its_logarithm() -> None:
    usual, brighter = plates(1.0, 1.5)
    assert log_distance(brighter, usual) == pytest.approx([np.log(1.5)] * 2, rel=0.06)


def test_a_plate_like_the_training_plates_is_not_beyond_them_and_a_dim_one_is() -> None:
    training = plates(0.8, 0.8, 1.0, 1.0, 1.25, 1.25)
    found = drift(plates(1.0, 0.3, seed=9), training, ["a", "a", "b", "b", "c", "c"])
    assert found.beyond.tolist() == [[False, False], [True, True]]
    assert (found.usual_C <= found.largest_C).all()


def test_each_training_plate_is_compared_with_the_other_experiments_alone() -> None:
    training = plates(0.8, 0.9, 1.0, 1.3)
    found = drift(training[:1], training, ["a", "a", "b", "c"])
    others = ([2, 3], [2, 3], [0, 1, 3], [0, 1, 2])
    apart = [log_distance(training[k], training[rest].sum(axis=0)) for k, rest in enumerate(others)]
    assert found.largest_C == pytest.approx(np.max(apart, axis=0))
    assert found.usual_C == pytest.approx(np.median(apart, axis=0))


def test_a_plate_within_the_spread_of_training_plates_is_not_beyond_them() -> None:
    """Experiments alike, whose plates are not: their sums lie together, and a plate like any of theirs is no news."""
    training = plates(0.8, 1.0, 1.25, 0.8, 1.0, 1.25)
    found = drift(plates(0.82, 1.22, seed=3), training, ["a"] * 3 + ["b"] * 3)
    assert not found.beyond.any()


def test_order_of_training_plates_does_not_matter() -> None:
    training = plates(0.8, 0.9, 1.0, 1.3)
    one = drift(training, training, ["a", "a", "b", "b"])
    other = drift(training, training[[2, 0, 3, 1]], ["b", "a", "b", "a"])
    for name in ("distance_PC", "usual_C", "largest_C"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


def test_one_training_experiment_says_nothing_of_the_usual() -> None:
    found = drift(plates(0.1), plates(1.0, 1.0), ["a", "a"])
    assert found.usual_C is None
    assert not found.beyond.any()
    assert (found.distance_PC > 1).all()


def test_no_training_plates_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs training plates"):
        drift(plates(1.0), plates(1.0)[:0], [])


def test_confidence_is_of_each_plates_own_wells() -> None:
    rows = [("RPE-02", 1, 0.9, 0.5), ("RPE-01", 2, 0.2, 0.1), ("RPE-02", 1, 0.5, 0.4), ("RPE-02", 1, 0.7, 0.1)]
    names = ("experiment", "plate", "confidence", "raw_confidence")
    assert confidence_by_plate(predictions([dict(zip(names, row, strict=True)) for row in rows])) == {
        ("RPE-01", 2): {"median": 0.2, "raw_median": 0.1, "unsure": 1.0},
        ("RPE-02", 1): {"median": 0.7, "raw_median": 0.4, "unsure": 1 / 3},
    }
