"""Square network inputs cut from images of any size: at random, from the centre, or as tiles that cover the image. torch only.

Crops are cut before pixels are binned, standardised or converted, so that only what the network sees is computed.
B batch, C channel, H and W pixels of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.storage.manifest import Manifest

if TYPE_CHECKING:
    from components.core.registry.model_manifest import ModelManifest

Corner = tuple[int, int]
"""Top and left of a crop, pixels."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Where inputs are cut from images of one size."""

    shape: tuple[int, int]  # H and W
    bin: int  # pixels of the image along a side of one of the input's
    window: int  # side of a crop, pixels of the image
    tile: bool  # whether inference takes all tiles, not the centre alone

    @classmethod
    def of(cls, screen: ScreenConfig, shape: tuple[int, int]) -> Crops:
        """As configured, for images of a size; InputError if crops would be larger."""
        try:
            side = screen.input_side_of(shape)
        except ValueError as error:
            raise InputError(f"screen.{error}; lower screen.crop or screen.bin") from None
        return cls(shape, screen.bin, side * screen.bin, screen.tile)

    @property
    def side(self) -> int:
        """Side of the networks' input, pixels after binning."""
        return self.window // self.bin

    @property
    def whole(self) -> bool:
        """Whether a crop is the image itself."""
        return self.shape == (self.window, self.window)

    @property
    def centre(self) -> Corner:
        """The corner of the crop at the centre."""
        height, width = self.shape
        return (height - self.window) // 2, (width - self.window) // 2

    def tiles(self) -> list[Corner]:
        """Corners of the crops of inference: the centre's; or the fewest that cover the image, evenly spaced, row by row."""
        if not self.tile:
            return [self.centre]
        rows, columns = (_starts(length, self.window) for length in self.shape)
        return [(top, left) for top in rows for left in columns]

    def cut(self, pixels_BCHW: Tensor, corner: Corner) -> Tensor:
        """The same crop of every image, binned, (B, C, S, S): a view of the pixels if they are not binned."""
        if self.whole and self.bin == 1:
            return pixels_BCHW
        top, left = corner
        return self._binned(pixels_BCHW[:, :, top : top + self.window, left : left + self.window])

    def cut_at_random(self, pixels_BCHW: Tensor, generator: Generator) -> Tensor:
        """A crop of each image, binned, (B, C, S, S). The generator, on the CPU, draws nothing if there is no choice."""
        free = [length - self.window for length in self.shape]
        if not any(free):
            return self.cut(pixels_BCHW, (0, 0))
        count = len(pixels_BCHW)
        tops, lefts = (torch.randint(each + 1, (count,), generator=generator).tolist() for each in free)
        out = pixels_BCHW.new_empty(count, pixels_BCHW.shape[1], self.window, self.window)
        for out_CSS, pixels_CHW, top, left in zip(out, pixels_BCHW, tops, lefts, strict=True):
            out_CSS.copy_(pixels_CHW[:, top : top + self.window, left : left + self.window])
        return self._binned(out)

    def _binned(self, pixels_BCHW: Tensor) -> Tensor:
        return pixels_BCHW if self.bin == 1 else F.avg_pool2d(pixels_BCHW.float(), self.bin)


def network_input(screen: ScreenConfig, images: Manifest | ModelManifest) -> tuple[int, int, int]:
    """Channels of the networks' input, its side in pixels, and the number of cell types.

    InputError if crops would be larger than the images.
    """
    return len(images.channels), Crops.of(screen, images.image_shape).side, len(images.cell_types)


def _starts(length: int, window: int) -> list[int]:
    count = math.ceil(length / window)
    return [round(k * (length - window) / max(count - 1, 1)) for k in range(count)]
