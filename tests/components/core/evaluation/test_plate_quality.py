from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from components.core.evaluation.plate_quality import drift, log_distance, plate_quality
from tests.components.core.evaluation.predicted import histogram_of, predictions
from tests.components.core.manifests import plate_record

COUNTS = st.integers(0, 2**32 - 1).map(histogram_of).filter(np.any)


def histograms(*brightness: float, seed: int = 0) -> NDArray[np.int64]:
    """Histograms of two channels of plates, by brightness relative to the usual."""
    rng = np.random.default_rng(seed)
    shapes = (rng.gamma(4, 10, (2, 5000)) for _ in brightness)
    levels = [(shape * light).clip(0, 255).astype(int) for shape, light in zip(shapes, brightness, strict=True)]
    return np.array([[np.bincount(channel, minlength=256) for channel in plate] for plate in levels])


@given(COUNTS, COUNTS)
def test_distance_agrees_with_scipy(one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    levels = np.log1p(np.arange(256))
    assert log_distance(one, other) == pytest.approx(wasserstein_distance(levels, levels, one, other), abs=1e-9)


def test_only_a_plate_unlike_the_training_plates_is_beyond_them() -> None:
    training = histograms(0.8, 0.8, 1.0, 1.0, 1.25, 1.25)
    found = drift(histograms(1.0, 0.3, seed=9), training, ["a", "a", "b", "b", "c", "c"])
    assert found.beyond_PC.tolist() == [[False, False], [True, True]]
    # The experiments are alike and their plates differ, so the sums of their plates are closer than the plates.
    varied = histograms(0.8, 1.0, 1.25, 0.8, 1.0, 1.25)
    assert not drift(histograms(0.82, 1.22, seed=3), varied, ["a"] * 3 + ["b"] * 3).beyond_PC.any()


def test_each_training_plate_is_compared_with_the_other_experiments() -> None:
    training = histograms(0.8, 0.9, 1.0, 1.3)
    found = drift(training[:1], training, ["a", "a", "b", "c"])
    others = ([2, 3], [2, 3], [0, 1, 3], [0, 1, 2])
    apart = [log_distance(training[k], training[rest].sum(axis=0)) for k, rest in enumerate(others)]
    assert found.times_PC[0] == pytest.approx(found.distance_PC[0] / np.median(apart, axis=0))
    assert found.beyond_PC[0].tolist() == (found.distance_PC[0] > np.max(apart, axis=0)).tolist()


def test_a_single_training_experiment_has_no_usual_distance() -> None:
    found = drift(histograms(0.1), histograms(1.0, 1.0), ["a", "a"])
    assert np.isnan(found.times_PC).all()
    assert not found.beyond_PC.any()
    assert (found.distance_PC > 1).all()


def test_plates_are_compared_within_their_cell_type() -> None:
    keys = [("RPE-02", "1"), ("U2OS-01", "1"), ("RPE-01", "2")]
    new = [
        plate_record(*key, histograms=counts.tolist())
        for key, counts in zip(keys, histograms(1.0, 1.0, 1.0), strict=True)
    ]
    training = [
        plate_record("RPE-09", n, histograms=counts.tolist()) for n, counts in enumerate(histograms(1.0, 1.2), 1)
    ]
    focus = {"RPE-02": 0.3, "U2OS-01": 0.5, "RPE-01": 0.9}
    channels = ("nuclei", "actin")
    wells = pd.DataFrame([
        {"experiment": experiment, "plate": plate, "look_at": "few cells" * (n == 0), "nuclei_share": 0.1,
         "focus_nuclei": focus[experiment] + 0.01 * n, "focus_actin": np.nan, "saturated_nuclei": 0.1 * n,
         "saturated_actin": 0.0}
        for experiment, plate in keys for n in range(3)
    ])  # fmt: skip
    rows = [("RPE-02", "1", 0.9, 0.5), ("RPE-01", "2", 0.2, 0.1), ("RPE-02", "1", 0.5, 0.4), ("RPE-02", "1", 0.7, 0.1)]
    names = ("experiment", "plate", "confidence", "raw_confidence")
    predicted = predictions([dict(zip(names, row, strict=True)) for row in rows])
    found = plate_quality(new, training, wells, predicted, channels)
    assert list(zip(found["experiment"], found["plate"], strict=True)) == keys
    assert found["wells"].tolist() == [3, 3, 3]
    assert found["look_at"].tolist() == [1, 1, 1]
    nan = np.nan
    expected = {
        "sharpness_nuclei": [0.31 / 0.61, nan, 0.91 / 0.61],
        "sharpness_actin": [nan, nan, nan],
        "saturated_nuclei": [0.1, 0.1, 0.1],
        "confidence": [0.7, nan, 0.2],
        "raw_confidence": [0.4, nan, 0.1],
        "unsure": [1 / 3, nan, 1.0],
    }
    for column, values in expected.items():
        assert found[column].tolist() == pytest.approx(values, nan_ok=True), column
    assert found["blurred"].tolist() == [True, False, False]
    together = np.array([plate.histograms for plate in training]).sum(axis=0)
    assert found["drift_actin"].isna().tolist() == [False, True, False]
    assert found["drift_actin"][2] == pytest.approx(log_distance(np.array(new[2].histograms), together)[1])
