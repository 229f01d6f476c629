from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import laplace

from components.core.evaluation.quality.focus import WHITE_NOISE, focus


@pytest.fixture
def site() -> NDArray[np.uint8]:
    """Three channels of round blobs, as far below the brightest grey level as a brighter copy needs."""
    rng = np.random.default_rng(3)
    channels = np.zeros((3, 64, 64), np.uint8)
    for channel in channels:
        for x, y in rng.integers(4, 60, (30, 2)):
            cv2.circle(channel, (int(x), int(y)), 3, int(rng.integers(20, 80)), -1)
    return channels


def test_agrees_with_a_filter_of_another_library(site) -> None:
    x_CHW = site.astype(np.float64)
    expected = [laplace(channel)[1:-1, 1:-1].var() / channel.var() for channel in x_CHW]
    assert focus(site) == pytest.approx(expected)


def test_every_step_of_blur_lowers_it(site) -> None:
    sharpness = [focus(site)] + [
        focus(np.stack([cv2.GaussianBlur(channel, (0, 0), sigma) for channel in site])) for sigma in (0.7, 1.4, 2.8)
    ]
    assert (np.diff(sharpness, axis=0) < 0).all()


def test_noise_alone_has_the_sum_of_the_squared_weights() -> None:
    noise = np.random.default_rng(0).normal(100, 20, (2, 256, 256)).clip(0, 255).astype(np.uint8)
    assert focus(noise) == pytest.approx([WHITE_NOISE] * 2, rel=0.02)


def test_light_and_contrast_do_not_change_it(site) -> None:
    assert focus(2 * site + 17) == pytest.approx(focus(site))


@pytest.mark.parametrize("turned", [lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: np.rot90(x, axes=(1, 2))])
def test_it_does_not_matter_how_the_plate_lay(site, turned) -> None:
    assert focus(turned(site)) == pytest.approx(focus(site))


def test_channels_do_not_mix_and_a_constant_one_has_none(site) -> None:
    site[1] = 9
    found = focus(site)
    assert np.isnan(found[1])
    assert found[[0, 2]] == pytest.approx(focus(site[[0, 2]]))


def test_too_few_pixels_are_an_error_that_says_how_many() -> None:
    with pytest.raises(ValueError, match="3 x 3 pixels, got 2 x 5"):
        focus(np.zeros((1, 2, 5), np.uint8))
