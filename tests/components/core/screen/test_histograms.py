"""Statistics from histograms against NumPy on the pixels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.core.screen import histograms
from components.core.screen.histograms import histogram, mean_std, percentile

images = arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))


@given(images)
def test_counts_mean_and_deviation_are_those_of_the_pixels(pixels_CHW):
    counts = histogram(pixels_CHW)
    assert counts.dtype == np.int64
    for channel, row in zip(pixels_CHW, counts, strict=True):
        assert np.array_equal(row, np.bincount(channel.ravel(), minlength=256))
    mean, std = mean_std(counts)
    flat = pixels_CHW.reshape(len(pixels_CHW), -1)
    assert np.array_equal(mean, flat.mean(1))
    np.testing.assert_allclose(std, flat.std(1), rtol=1e-12, atol=1e-12)


@given(images, st.integers(0, 1000))
def test_percentile_agrees_with_numpy(pixels_CHW, permille):
    ours = percentile(histogram(pixels_CHW), permille / 10)
    theirs = np.percentile(pixels_CHW.reshape(len(pixels_CHW), -1), permille / 10, axis=1, method="inverted_cdf")
    assert np.array_equal(ours, theirs)


def test_sums_are_exact_for_a_whole_screen():
    counts = np.zeros((1, 256), np.int64)
    counts[0, 254], counts[0, 255] = 3, 10**14  # in float64 the variance of this would be lost to cancellation
    mean, std = mean_std(counts)
    n = 10**14 + 3
    assert mean[0] == float(Fraction(254 * 3 + 255 * 10**14, n))
    assert std[0] ** 2 == pytest.approx(float(Fraction(3 * 10**14, n * n)), rel=1e-12)


def test_counts_of_large_images_are_exact(monkeypatch):
    pixels_CHW = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    small = histogram(pixels_CHW)
    monkeypatch.setattr(histograms, "_EXACT_IN_FLOAT32", 1)
    assert np.array_equal(histogram(pixels_CHW), small)
