"""A site's six image files become one chunk: all of packing that costs processor time. Pure.

A third of it holds Python's lock (png.py), so that on many cores it is done in processes. C channels, S side.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.core.config import PackConfig
from components.core.screen.chunks import encode_chunk
from components.core.screen.histograms import BINS, count_greys
from components.core.screen.images import PlateFolder, SiteFiles, check_image, decode_image

_scratch = threading.local()


@dataclass(frozen=True, slots=True)
class CodedSite:
    """A site as it is written.

    Attributes:
        sha256: of the chunk.
        images: what tells each image file from others of its size, in channel order.
        histogram_C256: pixel counts, int64.
        black: channels that are all black, from 0.
    """

    chunk: bytes
    sha256: str
    images: tuple[str, ...]
    histogram_C256: NDArray[np.int64]
    black: tuple[int, ...]


def code_site(
    plate: PlateFolder, site: SiteFiles, contents: Sequence[bytes], image_size: int, pack: PackConfig
) -> CodedSite:
    """Checks, decodes, counts and compresses a site.

    Args:
        plate: the site's.
        site: which site.
        contents: its files' bytes in channel order.
        image_size: expected side, pixels.
        pack: codec settings.

    Raises:
        InputError: an image is damaged or of another kind or size.
    """
    pixels_CSS = _pixels(len(contents), image_size)
    counts_C256 = np.empty((len(contents), BINS), np.int64)
    images = []
    for channel, content in enumerate(contents):
        images.append(check_image(plate, site, channel, content, image_size))
        decode_image(plate, site, channel, content, pixels_CSS[channel])
        count_greys(pixels_CSS[channel], counts_C256[channel])  # now, while it is in the cache
    chunk = encode_chunk(pixels_CSS, pack)
    black = tuple(np.flatnonzero(counts_C256[:, 0] == image_size * image_size).tolist())
    return CodedSite(chunk, hashlib.sha256(chunk).hexdigest(), tuple(images), counts_C256, black)


def _pixels(channels: int, size: int) -> NDArray[np.uint8]:
    """This thread's array (C, S, S), used again and again: fresh memory costs a page fault every 4 KiB."""
    known: NDArray[np.uint8] | None = getattr(_scratch, "pixels_CSS", None)
    if known is None or known.shape != (channels, size, size):
        known = _scratch.pixels_CSS = np.empty((channels, size, size), np.uint8)
    return known
