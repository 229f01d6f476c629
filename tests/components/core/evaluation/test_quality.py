"""Measures of sites and wells, and the reasons to look at wells of a plate of simulated sites, some of them spoiled."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import laplace

from components.core.evaluation.quality import (
    focus,
    nuclear_fraction,
    nuclei_channel,
    otsu_threshold,
    reasons_to_look,
    robust_scores,
    saturated,
    saturation_level,
    site_quality,
    well_quality,
)
from components.core.screen.histograms import histogram
from tests.components.core.evaluation.predicted import histogram_of

CHANNELS = ("nuclei", "actin")
WELLS = 40
COUNTS = st.integers(0, 2**32 - 1).map(histogram_of).filter(np.any)
VALUES = st.lists(st.integers(-1000, 1000), min_size=1, max_size=40).map(lambda each: pd.Series(each, dtype=float))


@pytest.fixture
def site() -> NDArray[np.uint8]:
    """Three channels of round blobs, as far below the brightest grey level as a brighter copy needs."""
    rng = np.random.default_rng(3)
    channels = np.zeros((3, 64, 64), np.uint8)
    for channel in channels:
        for x, y in rng.integers(4, 60, (30, 2)):
            cv2.circle(channel, (int(x), int(y)), 3, int(rng.integers(20, 80)), -1)
    return channels


def test_focus_agrees_with_scipy(site) -> None:
    x_CHW = site.astype(np.float64)
    expected = [laplace(channel)[1:-1, 1:-1].var() / channel.var() for channel in x_CHW]
    assert focus(site) == pytest.approx(expected)
    site[1] = 9  # a constant channel has none
    assert focus(site) == pytest.approx([expected[0], np.nan, expected[2]], nan_ok=True)


def test_blur_lowers_focus(site) -> None:
    sharpness = [focus(site)] + [
        focus(np.stack([cv2.GaussianBlur(channel, (0, 0), sigma) for channel in site])) for sigma in (0.7, 1.4, 2.8)
    ]
    assert (np.diff(sharpness, axis=0) < 0).all()


def test_saturated_counts_the_brightest_pixels() -> None:
    site_CHW = np.random.default_rng(1).integers(0, 256, (2, 40, 30), np.uint8)
    assert saturated(histogram(site_CHW)) == pytest.approx((site_CHW == 255).mean(axis=(1, 2)))


def test_a_camera_of_twelve_bits_saturates_at_its_own_largest_value() -> None:
    light = np.random.default_rng(1).gamma(2.0, 600.0, (2, 64, 64))
    clipped = light.clip(0, 4095).astype(np.uint16)
    counts = histogram(clipped)
    level = saturation_level(counts)
    assert level == 4095
    assert saturated(counts, level) == pytest.approx((light >= 4095).mean(axis=(1, 2)))
    # A largest value that is nobody's limit, or that no more pixels have than the one below, is just bright.
    for bright in (clipped // 2, np.minimum(light, 4000).astype(np.uint16)):
        assert saturation_level(histogram(bright)) == 65535
    assert saturation_level(histogram(np.full((1, 8, 8), 40, np.uint8))) == 255


@pytest.mark.parametrize(
    ("channels", "found"),
    [
        (("Mito", "OrigDNA", "AGP"), None), (("ER", "RNA", "DNA"), 2), (("w2", "Hoechst 33342"), 1), (("nucleoli", "nuclei"), 1),
        (("DAPI_1",), 0), (("H2B",), 0), (("w1", "w2"), None),
    ],
)  # fmt: skip
def test_the_channel_of_nuclei_is_found_by_name(channels: tuple[str, ...], found: int | None) -> None:
    assert nuclei_channel(channels) == found


def test_without_a_channel_of_nuclei_no_well_has_few_cells(plate) -> None:
    plate[11, :, 0] = 12
    plate[11, 0, 0, 0, 0] = 13
    sites = [site for well in plate for site in well]
    measures = np.array([site_quality(site, 0, None) for site in sites])
    wells = well_quality(measures, np.repeat(np.arange(len(plate)), 2), ("w1", "w2"))
    assert "nuclei_share" not in wells
    assert "cells" not in "".join(reasons_to_look(wells, ("w1", "w2")))


@given(COUNTS)
def test_no_level_separates_better_than_otsus(counts: NDArray[np.int64]) -> None:
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


def test_an_empty_well_has_no_nuclei_by_the_plates_threshold() -> None:
    rng = np.random.default_rng(4)
    empty = np.bincount(rng.normal(20, 4, 4000).clip(0, 255).astype(int), minlength=256)
    full = np.bincount(
        np.r_[rng.normal(20, 4, 3000), rng.normal(120, 10, 1000)].clip(0, 255).astype(int), minlength=256
    )
    threshold = otsu_threshold(empty + 5 * full)
    assert nuclear_fraction(empty, threshold) == 0.0
    assert nuclear_fraction(full, threshold) == pytest.approx(0.25, abs=0.001)
    # Its own threshold would find nuclei in the noise.
    assert nuclear_fraction(empty, otsu_threshold(empty)) > 0.3


@given(VALUES, st.floats(0.1, 10), st.integers(-100, 100))
def test_robust_scores_do_not_depend_on_unit_and_origin(values: pd.Series, scale: float, shift: int) -> None:
    assert robust_scores(values * scale + shift).tolist() == pytest.approx(robust_scores(values).tolist(), abs=1e-6)


def test_outliers_do_not_hide_each_other() -> None:
    values = pd.Series(np.r_[np.random.default_rng(0).normal(0, 1, 90), np.full(10, 100.0)])
    assert (robust_scores(values)[90:] > 50).all()
    assert (((values - values.mean()) / values.std())[90:].abs() < 4).all()  # of plain scores


def test_robust_scores_of_mostly_equal_values_and_nan() -> None:
    found = robust_scores(pd.Series([0.0] * 30 + [0.2, np.nan]))
    assert found.tolist() == pytest.approx([0] * 30 + [31 / 1.2533, np.nan], nan_ok=True)
    assert (robust_scores(pd.Series([3.0] * 5)) == 0).all()
    assert robust_scores(pd.Series([np.nan])).isna().all()


@pytest.fixture
def plate() -> NDArray[np.uint8]:
    """Two sites a well of nuclei and of what surrounds them."""
    rng = np.random.default_rng(5)
    wells = np.zeros((WELLS, 2, 2, 48, 48), np.uint8)
    for well in wells:
        for site in well:
            for x, y in rng.integers(5, 43, (rng.integers(9, 12), 2)):
                cv2.circle(site[0], (int(x), int(y)), 3, int(rng.integers(140, 180)), -1)
                cv2.circle(site[1], (int(x), int(y)), 5, int(rng.integers(140, 180)), 2)
            site[1] = cv2.GaussianBlur(site[1], (0, 0), 0.6)  # no lens draws a line of one pixel
    return wells + rng.integers(5, 15, wells.shape, np.uint8)


def reasons(plate: NDArray[np.uint8]) -> list[str]:
    sites = [site for well in plate for site in well]
    threshold = otsu_threshold(sum(histogram(site)[0] for site in sites))
    measures = np.array([site_quality(site, threshold, 0) for site in sites])
    return reasons_to_look(well_quality(measures, np.repeat(np.arange(len(plate)), 2), CHANNELS), CHANNELS)


def test_finds_each_spoiled_well_with_its_reason_and_no_other(plate) -> None:
    assert reasons(plate) == [""] * WELLS
    plate[3, 1, 1] = cv2.GaussianBlur(plate[3, 1, 1], (0, 0), 3)  # one channel of one site
    plate[8, 0, 1, :8] = 255
    plate[11, :, 0] = np.random.default_rng(0).integers(5, 15, plate[11, :, 0].shape, np.uint8)
    plate[17, 1, 1] = 7
    plate[23, 0, 1] = np.random.default_rng(1).integers(5, 15, plate[23, 0, 1].shape, np.uint8)
    plate[29] = 12
    found = {well: reason for well, reason in enumerate(reasons(plate)) if reason}
    assert "saturated: actin" in found.pop(8)
    assert found == {
        3: "blurred: actin",
        11: "little but noise: nuclei; few cells",
        17: "constant: actin",
        23: "little but noise: actin",
        29: "constant: all channels; few cells",
    }


def test_wells_of_a_blurred_plate_are_not_flagged(plate) -> None:
    blurred = np.array([[[cv2.GaussianBlur(c, (0, 0), 3) for c in site] for site in well] for well in plate])
    assert reasons(blurred) == [""] * WELLS


def test_all_wells_of_a_plate_without_a_stain_are_flagged(plate) -> None:
    plate[:, :, 1] = np.random.default_rng(2).integers(5, 15, plate[:, :, 1].shape, np.uint8)
    assert reasons(plate) == ["little but noise: actin"] * WELLS
