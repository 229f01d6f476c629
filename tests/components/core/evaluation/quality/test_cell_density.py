from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.core.evaluation.quality.cell_density import nuclear_share, otsu_threshold

COUNTS = st.lists(st.integers(0, 50), min_size=256, max_size=256).map(np.array).filter(lambda counts: counts.any())


@given(COUNTS)
def test_no_level_separates_better(counts: NDArray[np.int64]) -> None:
    def between(level: int) -> float:
        """Variance between the classes, by their definition."""
        sizes = counts[: level + 1].sum(), counts[level + 1 :].sum()
        if not all(sizes):
            return 0.0
        levels = np.arange(256)
        dark = (counts * levels)[: level + 1].sum() / sizes[0]
        bright = (counts * levels)[level + 1 :].sum() / sizes[1]
        return float(sizes[0] * sizes[1] * (dark - bright) ** 2)

    found = between(otsu_threshold(counts))
    assert found == pytest.approx(max(map(between, range(256))))


def test_agrees_with_opencv_on_dark_and_bright() -> None:
    rng = np.random.default_rng(2)
    image = np.where(rng.random((80, 80)) < 0.2, rng.normal(150, 20, (80, 80)), rng.normal(30, 9, (80, 80)))
    image = image.clip(0, 255).astype(np.uint8)
    expected, _ = cv2.threshold(image, 0, 255, cv2.THRESH_OTSU)
    assert otsu_threshold(np.bincount(image.ravel(), minlength=256)) == expected


def test_an_empty_well_has_no_nuclei_by_its_plates_threshold() -> None:
    rng = np.random.default_rng(4)
    empty = np.bincount(rng.normal(20, 4, 4000).clip(0, 255).astype(int), minlength=256)
    full = np.bincount(
        np.r_[rng.normal(20, 4, 3000), rng.normal(120, 10, 1000)].clip(0, 255).astype(int), minlength=256
    )
    threshold = otsu_threshold(empty + 5 * full)
    assert nuclear_share(empty, threshold) == 0.0
    assert nuclear_share(full, threshold) == pytest.approx(0.25, abs=0.001)
    # Its own threshold would find nuclei in the noise.
    assert nuclear_share(empty, otsu_threshold(empty)) > 0.3


def test_no_pixels_are_an_error() -> None:
    with pytest.raises(ValueError, match="without pixels"):
        otsu_threshold(np.zeros(256, int))
