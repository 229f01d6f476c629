"""One site as one compressed chunk: Blosc frames as Zarr's codec chain bytes -> blosc writes them. Pure.

C channels, S side. A chunk holds the C-ordered uint8 array (C, S, S).
"""

from __future__ import annotations

import struct

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from components.core.config import PackConfig

# Sites are coded side by side in threads, and Blosc's own global threads would serialise them.
blosc.use_threads = False

_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_HEADER = 16
"""Bytes of a Blosc frame's header: two versions, flags, type size, then three little-endian 32-bit sizes."""


class BadChunkError(ValueError):
    """Why the bytes are not a chunk of the expected size; the caller adds the site's name."""


def encode_chunk(pixels_CSS: NDArray[np.uint8], pack: PackConfig) -> bytes:
    """Compresses a site.

    Args:
        pixels_CSS: shape (C, S, S), uint8, C order.
        pack: codec, level and filter.
    """
    return bytes(blosc.compress(pixels_CSS, pack.codec.encode(), pack.level, _SHUFFLES[pack.shuffle]))


def decode_chunk(data: bytes | memoryview, out_CSS: NDArray[np.uint8]) -> None:
    """Decompresses a site into place.

    Args:
        data: what `encode_chunk` made; a view of bytes where it is not copied.
        out_CSS: receives the pixels, shape (C, S, S), uint8, C-contiguous.

    Raises:
        BadChunkError: the bytes are truncated, damaged or of another size.
    """
    # The decompressor trusts the sizes in the header, so they are compared with the facts before it runs.
    if len(data) < _HEADER:
        raise BadChunkError(f"truncated, {len(data)} bytes")
    raw_bytes, _, frame_bytes = struct.unpack_from("<III", data, 4)
    if frame_bytes != len(data):
        raise BadChunkError(f"truncated or damaged, {len(data)} bytes where its header says {frame_bytes}")
    if raw_bytes != out_CSS.nbytes:
        raise BadChunkError(f"holds {raw_bytes} bytes of pixels where {out_CSS.nbytes} were expected")
    try:
        blosc.decompress(data, out_CSS)
    except (RuntimeError, ValueError) as error:
        raise BadChunkError(f"damaged ({error})") from None
