from __future__ import annotations

import numpy as np
import pytest

from components.core.evaluation.quality.saturation import saturated
from components.core.screen.histograms import histogram


def test_it_is_the_share_of_the_brightest_pixels_of_each_channel() -> None:
    rng = np.random.default_rng(1)
    site_CHW = rng.integers(0, 256, (4, 40, 30), np.uint8)
    site_CHW[2] = 255
    site_CHW[3] = 254
    found = saturated(histogram(site_CHW))
    assert found == pytest.approx((site_CHW == 255).mean(axis=(1, 2)))
    assert found[2] == 1.0
    assert found[3] == 0.0
