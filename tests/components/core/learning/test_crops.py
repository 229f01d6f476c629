"""Crops against plain slices and means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.core.config import ScreenConfig
from components.core.learning.crops import Crops

sizes = st.integers(4, 30)


def crops_of(shape, **fields) -> Crops:
    return Crops.of(ScreenConfig(image_size=shape, **fields), shape)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 30))
def test_tiles_cover_the_image_and_are_as_few_as_possible(height, width, n, side):
    side = min(side, height // n, width // n)
    crops = crops_of((height, width), bin=n, crop=side, tile=True)
    covered = np.zeros((height, width), int)
    for top, left in crops.tiles():
        assert 0 <= top <= height - crops.window
        assert 0 <= left <= width - crops.window
        covered[top : top + crops.window, left : left + crops.window] += 1
    assert covered.all()
    assert len(crops.tiles()) == -(-height // crops.window) * -(-width // crops.window)


@given(sizes, sizes, st.integers(1, 3))
def test_the_default_crop_is_the_shorter_side_at_the_centre(height, width, n):
    crops = crops_of((height, width), bin=n)
    pixels = torch.arange(2 * height * width).reshape(1, 2, height, width).to(torch.uint16)
    (corner,) = crops.tiles()
    found = crops.cut(pixels, corner)
    side = min(height, width) // n
    assert found.shape == (1, 2, side, side)
    top, left = (height - side * n) // 2, (width - side * n) // 2
    plain = pixels[0].numpy()[:, top : top + side * n, left : left + side * n].astype(float)
    expected = plain.reshape(2, side, n, side, n).mean((2, 4))
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6)


def test_random_crops_are_parts_of_their_images_at_every_place():
    crops = crops_of((6, 8), crop=5)
    pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 1, 6, 8).repeat(200, 1, 1, 1)
    found = crops.cut_at_random(pixels, torch.Generator().manual_seed(0))
    corners = {divmod(int(first), 8) for first in found[:, 0, 0, 0]}
    assert corners == {(top, left) for top in range(2) for left in range(4)}
    for crop in found:
        top, left = divmod(int(crop[0, 0, 0]), 8)
        assert torch.equal(crop, pixels[0, :, top : top + 5, left : left + 5])
    again = crops.cut_at_random(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def test_a_whole_image_is_neither_copied_nor_drawn_for():
    crops, generator = crops_of((8, 8)), torch.Generator().manual_seed(0)
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    before = generator.get_state()
    assert crops.cut(pixels, crops.centre) is pixels
    assert crops.cut_at_random(pixels, generator) is pixels
    assert torch.equal(generator.get_state(), before)


def test_a_crop_larger_than_the_images_is_refused():
    with pytest.raises(ValidationError, match="crop 31 is larger than the images, whose shorter side is 30 pixels"):
        ScreenConfig(image_size=(60, 80), bin=2, crop=31)
