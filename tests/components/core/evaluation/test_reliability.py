from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.evaluation.reliability import expected_calibration_error, kept_above, reliability_bins

WELLS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(WELLS)
def test_agrees_with_a_plain_loop(wells: list[tuple[float, bool]]) -> None:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, hit in wells:
        bins.setdefault(min(int(p * 10), 9), []).append((p, hit))
    plain = sum(abs(sum(p for p, _ in b) - sum(h for _, h in b)) for b in bins.values()) / len(wells)
    confidence, correct = zip(*wells, strict=True)
    assert expected_calibration_error(confidence, correct) == pytest.approx(plain, abs=1e-12)
    assert sum(b.wells for b in reliability_bins(confidence, correct)) == len(wells)


def test_confidences_that_keep_their_word_have_no_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert expected_calibration_error(p, rng.random(p.size) < p) < 0.01
    assert expected_calibration_error(np.sqrt(p), rng.random(p.size) < p) > 0.1


def test_no_wells_is_an_error() -> None:
    with pytest.raises(ValueError, match="no wells"):
        expected_calibration_error([], [])


def test_thresholds_keep_the_wells_at_or_above() -> None:
    rows = kept_above([0.5, 0.9, 0.95], [False, True, True], [0.5, 0.9, 0.99])
    assert rows == [(0.5, 1.0, pytest.approx(2 / 3)), (0.9, pytest.approx(2 / 3), 1.0), (0.99, 0.0, None)]
