"""What the header of an image file says of its planes, and why a file is refused. Pure data; planes.py reads headers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.storage.manifest import PixelType

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels of an image, of either type."""
PIXEL_TYPES: dict[np.dtype[np.generic], PixelType] = {np.dtype(np.uint8): "uint8", np.dtype(np.uint16): "uint16"}
COPY_AGAIN = "copy it again"
OTHER_PALETTE = (
    "its colours are a palette other than shades of grey or of one colour from black, so what is bright is not known; export the "
    "channel as grey"
)


class BadImageError(ValueError):
    """Why the bytes are not a readable image of the expected form; the caller adds the file's name."""


@dataclass(frozen=True, slots=True)
class PlaneHeader:
    """The form of a file's planes. All planes that the header counts have it."""

    shape: tuple[int, int]  # height and width, pixels
    dtype: PixelType
    planes: int = 1  # pages of a TIFF times samples of a pixel, or (t, c, z) of an OME-Zarr image
    samples: int = 1  # of a pixel: 3 of a colour picture
    axes: str = ""  # of an OME-Zarr image the axes before y and x, with their lengths

    @property
    def contents(self) -> str:
        """What planes there are: an index means the same in files of the same contents."""
        return self.axes or contents_of(self.planes)

    def check(self, shape: tuple[int, int], dtype: PixelType, index: int, contents: str = "") -> None:
        """Raises BadImageError unless there is a plane of this index and the expected form, among the expected contents, if any."""
        if contents and self.contents != contents:
            raise BadImageError(
                f"expected {contents}, found {self.contents}: export it as the others of its channel (screen.z chooses planes only "
                "where all files of a channel hold as many)"
            )
        if self.shape != shape:
            raise BadImageError(
                f"expected {pixels(shape)}, found {pixels(self.shape)}; the images of a screen have one size: correct "
                "screen.image_size, or resize or leave out the images that differ"
            )
        if self.dtype != dtype:
            raise BadImageError(
                f"expected {bits(dtype)}-bit pixels, found {bits(self.dtype)}-bit; the images of a screen have one bit depth: "
                "export them again with the same"
            )
        if not 0 <= index < self.planes:
            raise BadImageError(f"there is no plane {index}, it has {self.planes} (from 0)")


@dataclass(frozen=True, slots=True)
class ImageForm:
    """What all images of a packed screen have in common."""

    channels: tuple[str, ...]
    shape: tuple[int, int]  # H and W
    dtype: PixelType  # of the packed pixels
    pixel_size: float | None = None  # micrometres; None if it is unknown

    @property
    def site_shape(self) -> tuple[int, int, int]:
        """Shape of a site."""
        return (len(self.channels), *self.shape)


def brightest_sample(palette_N3: NDArray[np.integer]) -> int | None:
    """The sample that is the index itself in a palette of 8-bit grey, or of one colour's shades from black; None of others.

    The other samples may differ from their share of it by rounding.
    """
    index_N = np.arange(len(palette_N3))
    for sample in range(3):
        shares_3 = palette_N3[-1] / max(int(palette_N3[-1, sample]), 1)
        if (palette_N3[:, sample] == index_N).all() and (abs(palette_N3 - np.outer(index_N, shares_3)) < 2).all():
            return sample
    return None


def contents_of(planes: int) -> str:
    """`PlaneHeader.contents` of a file, not an OME-Zarr, that holds so many planes."""
    return f"{planes} plane{'' if planes == 1 else 's'}"


def pixels(shape: tuple[int, int]) -> str:
    """A size in messages."""
    height, width = shape
    return f"{height}x{width} pixels" + ("" if height == width else " (height x width)")


def bits(dtype: PixelType) -> int:
    """Bits of a pixel."""
    return 8 * np.dtype(dtype).itemsize
