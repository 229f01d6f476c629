"""One site as a strip of pictures: a composite, then each channel in its pseudo-colour. Arrays in, PNG bytes out.

C channels, S side of the site, T side of a tile.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from components.core.screen.histograms import percentile
from components.core.screen.plane_header import Pixels
from components.core.storage.counts import Counts

CHANNEL_COLOURS = (
    (0x56, 0x8C, 0xFF),
    (0x2B, 0xD9, 0x8A),
    (0xFF, 0x5A, 0x4D),
    (0x3F, 0xD5, 0xE8),
    (0xF5, 0x6C, 0xD9),
    (0xFF, 0xC8, 0x3D),
)
"""RGB of nuclei, ER, actin, nucleoli, mitochondria, Golgi, in the order of the pictures."""
COMPOSITE = 3
"""The first channels form the composite: all six together are grey, because most stains overlap in the cytoplasm."""
CONTRAST = (1.0, 99.7)
"""Percentiles of the plate's pixels that become black and full colour."""


def contrast_limits(histograms: Counts) -> NDArray[np.float64]:
    """Grey levels of each channel that become black and full colour, (C, 2), from the plate: a dim site then looks dim."""
    low_C, high_C = (percentile(histograms.array, percent) for percent in CONTRAST)
    return np.stack([low_C, np.maximum(high_C, low_C + 1)], axis=1).astype(np.float64)


def draw(image_CSS: Pixels, limits_C2: NDArray[np.float64], tile: int = 132) -> bytes:
    """The strip as PNG: composite first, then the channels in order.

    Args:
        image_CSS: one site; of one that is not square the centre is shown. More than six channels repeat the colours.
        limits_C2: from `contrast_limits`.
        tile: side of a picture, pixels. A site more than twice as large is cropped to its centre, shown at half size, so
            that cells stay recognisable; a site smaller than a tile keeps its size.
    """
    height, width = image_CSS.shape[1:]
    shown = min(height, width, 2 * tile)
    top, left = (height - shown) // 2, (width - shown) // 2
    crop_CSS = image_CSS[:, top : top + shown, left : left + shown]
    tile = min(tile, shown)
    low_C11, high_C11 = limits_C2[:, 0, None, None], limits_C2[:, 1, None, None]
    unit_CSS = np.clip((crop_CSS - low_C11) / (high_C11 - low_C11), 0.0, 1.0)
    unit_CTT = [cv2.resize(plane, (tile, tile), interpolation=cv2.INTER_AREA) for plane in unit_CSS]
    colours = CHANNEL_COLOURS if len(unit_CTT) > 1 else ((0xFF, 0xFF, 0xFF),)
    coloured = [plane[..., None] * np.array(colours[c % len(colours)], np.float64) for c, plane in enumerate(unit_CTT)]
    composite = np.minimum(np.sum(coloured[:COMPOSITE], axis=0), 255.0)
    gap = np.full((tile, max(1, tile // 44), 3), 255.0)
    pieces = [composite]
    for layer in coloured if len(coloured) > 1 else ():
        pieces += [gap, layer]
    rgb = np.concatenate(pieces, axis=1).round().astype(np.uint8)
    done, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done, "a uint8 RGB array always encodes"
    return bytes(data)
