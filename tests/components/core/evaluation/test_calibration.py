import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from components.core.evaluation.calibration import (
    HIGHEST,
    LOWEST,
    expected_calibration_error,
    fit_temperature,
    kept_above,
    reliability_bins,
)


def drawn(rng, wells: int, classes: int):
    """Logits whose softmax is the true probability of each class, and classes drawn by it."""
    logits = 2 * rng.standard_normal((wells, classes))
    truth = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((wells, 1))).argmax(axis=1)
    return logits, truth


def test_is_the_minimum_of_the_negative_log_likelihood():
    rng = np.random.default_rng(5)
    blocks = [drawn(rng, 60, 6), drawn(rng, 40, 9)]
    unknown = rng.standard_normal((50, 7)), np.full(50, -1)  # wells without their class change nothing
    found = fit_temperature([x for x, _ in (*blocks, unknown)], [t for _, t in (*blocks, unknown)])

    def loss(t):
        return -sum(log_softmax(x / t, axis=1)[np.arange(len(y)), y].sum() for x, y in blocks)

    assert loss(found) <= min(loss(found * 1.02), loss(found / 1.02))


def test_is_the_temperature_at_which_given_predictions_are_most_likely_right_or_wrong_as_they_are():
    rng = np.random.default_rng(5)
    blocks = [(*drawn(rng, 60, 6), rng.integers(6, size=60)), (*drawn(rng, 40, 9), rng.integers(9, size=40))]
    found = fit_temperature(*([block[n] for block in blocks] for n in range(3)))

    def loss(t):
        return -sum(
            np.where(y == z, np.log(p), np.log1p(-p)).sum()
            for x, y, z in blocks
            for p in [softmax(x / t, axis=1)[np.arange(len(z)), z].clip(0, 1 - 1e-12)]
        )

    assert loss(found) <= min(loss(t) for t in np.geomspace(LOWEST, HIGHEST, 200)) + 1e-3


def test_stays_within_bounds_if_all_or_no_wells_are_correct():
    logits = 5 * np.eye(6)
    assert LOWEST <= fit_temperature([logits], [np.arange(6)]) < 0.15  # below, all probabilities round to 1
    assert HIGHEST / 2 < fit_temperature([logits], [(np.arange(6) + 1) % 6]) <= HIGHEST


def test_rejects_wells_without_a_known_class():
    with pytest.raises(ValueError, match="no well with a known class"):
        fit_temperature([np.zeros((2, 3))], [np.array([-1, -1])])


WELLS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@settings(deadline=None)
@given(WELLS)
def test_calibration_error_agrees_with_a_plain_loop(wells: list[tuple[float, bool]]) -> None:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, hit in wells:
        bins.setdefault(min(int(p * 10), 9), []).append((p, hit))
    plain = sum(abs(sum(p for p, _ in b) - sum(h for _, h in b)) for b in bins.values()) / len(wells)
    confidence, correct = zip(*wells, strict=True)
    assert expected_calibration_error(confidence, correct) == pytest.approx(plain, abs=1e-12)
    assert reliability_bins(confidence, correct)["wells"].sum() == len(wells)
    with pytest.raises(ValueError, match="no wells"):
        expected_calibration_error([], [])


def test_thresholds_keep_the_wells_at_or_above() -> None:
    rows = kept_above([0.5, 0.9, 0.95], [False, True, True], [0.5, 0.9, 0.99])
    assert rows == [(0.5, 1.0, pytest.approx(2 / 3)), (0.9, pytest.approx(2 / 3), 1.0), (0.99, 0.0, None)]
