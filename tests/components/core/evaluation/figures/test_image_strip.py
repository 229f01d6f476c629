from __future__ import annotations

import cv2
import numpy as np

from components.core.evaluation.figures.image_strip import CHANNEL_COLOURS, contrast_limits, draw
from components.core.storage.counts import Counts

LIMITS = np.array([[0.0, 100.0]] * 6)


def tiles(png: bytes, side: int, gap: int) -> list[np.ndarray]:
    rgb = cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert rgb.shape == (side, 7 * side + 6 * gap, 3)
    return [rgb[:, i * (side + gap) : i * (side + gap) + side] for i in range(7)]


def test_each_channel_has_its_own_tile_and_colour() -> None:
    for channel in range(6):
        image = np.zeros((6, 44, 44), np.uint8)
        image[channel, :, :22] = 100
        composite, *channels = tiles(draw(image, LIMITS, tile=44), 44, 1)
        for c, tile in enumerate(channels):
            assert tuple(tile[5, 5]) == (CHANNEL_COLOURS[c] if c == channel else (0, 0, 0))
            assert not tile[:, 22:].any()
        assert composite.any() == (channel < 3)


def test_contrast_limits_are_percentiles_of_the_plate() -> None:
    counts = np.zeros((1, 256), int)
    counts[0, 10], counts[0, 20], counts[0, 90] = 500, 499, 1
    assert contrast_limits(Counts(counts)).tolist() == [[10.0, 20.0]]


def test_a_large_site_shows_its_centre() -> None:
    image = np.zeros((6, 400, 400), np.uint8)
    image[:, 150:250, 150:250] = 255
    _, first, *_ = tiles(draw(image, LIMITS, tile=100), 100, 2)
    assert first[50, 50].any()
    assert not first[:20].any()
    assert abs(int(first.any(axis=2).sum()) - 50 * 50) <= 200
