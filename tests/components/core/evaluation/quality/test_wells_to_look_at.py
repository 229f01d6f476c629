"""From pixels to reasons: a plate of simulated sites, some of which are spoiled."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from components.core.evaluation.quality.cell_density import otsu_threshold
from components.core.evaluation.quality.site_quality import SiteQuality, site_quality
from components.core.evaluation.quality.wells_to_look_at import reasons_to_look, well_quality
from components.core.screen.histograms import histogram

CHANNELS = ("nuclei", "actin")
WELLS = 40


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


def reasons(plate: NDArray[np.uint8]) -> list[list[str]]:
    threshold = otsu_threshold(sum(histogram(site)[0] for well in plate for site in well))
    wells = [well_quality([site_quality(site, threshold) for site in well]) for well in plate]
    return reasons_to_look(wells, CHANNELS)


def test_a_good_plate_has_nothing_to_look_at(plate) -> None:
    assert reasons(plate) == [[]] * WELLS


def test_each_spoiled_well_is_found_with_its_reason_and_no_other(plate) -> None:
    plate[3, 1, 1] = cv2.GaussianBlur(plate[3, 1, 1], (0, 0), 3)  # one site, one channel
    plate[8, 0, 1, :8] = 255
    plate[11, :, 0] = np.random.default_rng(0).integers(5, 15, plate[11, :, 0].shape, np.uint8)
    plate[17, 1, 1] = 7
    plate[29] = 12  # of everything
    plate[23, 0, 1] = np.random.default_rng(1).integers(
        5, 15, plate[23, 0, 1].shape, np.uint8
    )  # one site without the stain
    found = reasons(plate)
    assert found[3] == ["blurred: actin"]
    assert "saturated: actin" in found[8]
    assert found[11] == ["little but noise: nuclei", "few cells"]
    assert found[17] == ["constant: actin"]
    assert found[29] == ["constant: all channels", "few cells"]
    assert found[23] == ["little but noise: actin"]
    assert [w for w, words in enumerate(found) if words] == [3, 8, 11, 17, 23, 29]


def test_wells_are_judged_the_same_in_any_order(plate) -> None:
    plate[3, 1, 1] = cv2.GaussianBlur(plate[3, 1, 1], (0, 0), 3)
    order = np.random.default_rng(1).permutation(WELLS)
    whole = reasons(plate)
    assert reasons(plate[order]) == [whole[w] for w in order]


def test_a_blurred_plate_is_not_a_plate_of_blurred_wells(plate) -> None:
    blurred = np.array([[[cv2.GaussianBlur(c, (0, 0), 3) for c in site] for site in well] for well in plate])
    assert reasons(blurred) == [[]] * WELLS


def test_a_plate_without_a_stain_is_a_plate_of_wells_to_look_at(plate) -> None:
    plate[:, :, 1] = np.random.default_rng(2).integers(5, 15, plate[:, :, 1].shape, np.uint8)
    assert reasons(plate) == [["little but noise: actin"]] * WELLS


def test_a_well_is_as_good_as_its_worst_site_and_as_full_as_their_mean() -> None:
    sites = [
        SiteQuality(np.array([0.5, np.nan]), np.array([0.0, 0.1]), 0.2),
        SiteQuality(np.array([0.3, 0.4]), np.array([0.2, 0.0]), 0.4),
    ]
    found = well_quality(sites)
    assert found.focus_C[0] == 0.3
    assert found.noisiest_C[0] == 0.5
    assert np.isnan(found.focus_C[1])
    assert found.saturated_C.tolist() == [0.2, 0.1]
    assert found.nuclei == pytest.approx(0.3)


def test_no_wells_have_no_reasons() -> None:
    assert reasons_to_look([], CHANNELS) == []
