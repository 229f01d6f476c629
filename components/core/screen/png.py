"""Checks and decodes the bytes of one image file. Pure; which file it was is for the caller to say.

A decoder that meets half a file may hand back half an image without a word, so the file's own structure is checked
first: header, checksum of every chunk, end marker. That costs 1 % of decoding.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from imagecodecs import PngError, png_decode
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


class BadPngError(ValueError):
    """Why the bytes are not a readable 8-bit grey PNG of the expected size; the caller adds the file's name."""


def check_png(data: bytes, size: int) -> bytes:
    """Checks everything that can be seen without decompressing.

    Args:
        data: the file's bytes.
        size: expected side of the square image, pixels.

    Returns:
        The checksums that the file carries, one CRC-32 for each of its parts, which are right: files of the same size and
        checksums are taken for the same. They cost nothing here, where a digest of the bytes would cost 2 % of packing.

    Raises:
        BadPngError: not a PNG, truncated, damaged, or not 8-bit grey of the expected size.

    Source: PNG specification (ISO/IEC 15948), chunk layout.
    """
    if not data:
        raise BadPngError("the file is empty; copy it again")
    if not data.startswith(_SIGNATURE):
        cut = _SIGNATURE.startswith(data)
        raise BadPngError("the file is truncated; copy it again" if cut else "the file is not a PNG")
    view = memoryview(data)
    position, kind, has_pixels = len(_SIGNATURE), b"", False
    checksums = []
    while kind != b"IEND":
        if position + 12 > len(data):
            raise BadPngError("the file is truncated; copy it again")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise BadPngError("the file is truncated; copy it again")
        checksums.append(data[end - 4 : end])
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(checksums[-1], "big"):
            raise BadPngError("the file is damaged (a checksum does not match); copy it again")
        if (kind == b"IHDR") != (position == len(_SIGNATURE)):
            raise BadPngError("the file is damaged (its header is not where it belongs); copy it again")
        if kind == b"IHDR":
            _check_header(bytes(view[position + 8 : end - 4]), size)
        has_pixels = has_pixels or kind == b"IDAT"
        position = end
    if position != len(data) or not has_pixels:
        problem = "there is data after its end" if has_pixels else "it holds no pixels"
        raise BadPngError(f"the file is damaged ({problem}); copy it again")
    return b"".join(checksums)


def _check_header(header: bytes, size: int) -> None:
    if len(header) != 13:
        raise BadPngError("the file is damaged (its header has a wrong length); copy it again")
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    if colour != 0 or depth != 8:
        raise BadPngError(
            f"expected an 8-bit grey image, found {depth}-bit {_COLOURS.get(colour, f'colour type {colour}')}; "
            "export the channel as 8-bit grey"
        )
    if (width, height) != (size, size):
        raise BadPngError(f"expected {size}x{size} pixels, found {width}x{height}; set screen.image_size or resize it")


def decode_png(data: bytes, out_HW: NDArray[np.uint8]) -> None:
    """Decodes a PNG that `check_png` accepted.

    Args:
        data: the file's bytes.
        out_HW: receives the pixels, shape (size, size), uint8.

    Raises:
        BadPngError: the compressed stream is broken although its checksums match.
    """
    # Into place: no image's memory is made anew, which OpenCV does for each, and on busy cores takes a tenth of decoding.
    # Like OpenCV, and unlike faster decoders, it runs outside of Python's lock.
    try:
        png_decode(data, out=out_HW)
    except (PngError, ValueError) as error:
        raise BadPngError(f"the image data cannot be decoded ({error}); copy or export the file again") from None
