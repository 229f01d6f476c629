"""Checks and decodes the bytes of one image file. Pure; the caller names the file in errors.

A decoder may silently return half an image for half a file, so the file's own structure is checked first: header, checksum
of every chunk, end marker. That costs a few per cent of decoding.

Decoding takes two steps, each with the fastest library: libdeflate inflates and checks, kornia-rs undoes the filters, row by
row. Together they take half of libpng's time. The second holds Python's lock, so several cores decode in processes
(batches.py). libpng decodes whatever these two refuse, and reports what is wrong with it.
"""

from __future__ import annotations

import struct
import threading
import zlib
from functools import lru_cache

import numpy as np
from imagecodecs import DeflateError, PngError, deflate_adler32, deflate_crc32, deflate_decode, png_decode
from kornia_rs.io import decode_image_png_u8, decode_image_png_u16
from numpy.typing import NDArray

from components.core.screen.plane_header import (
    COPY_AGAIN,
    OTHER_PALETTE,
    PIXEL_TYPES,
    BadImageError,
    Pixels,
    PlaneHeader,
    brightest_sample,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_AT = 25
"""Position of the colour type in a file."""
_STORED = 2**16 - 1
"""Most bytes of a stored (uncompressed) block of a zlib stream."""
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 1, _RGB_ALPHA: 3}
"""Planes by colour type; transparency is none."""
_COLOURS = {
    _GREY: "grey",
    _RGB: "RGB",
    _PALETTE: "palette",
    _GREY_ALPHA: "grey with alpha",
    _RGB_ALPHA: "RGB with alpha",
}


def png_header(data: bytes) -> PlaneHeader:
    """The form of the planes, one of a grey picture and three of RGB.

    Raises:
        BadImageError: no header, pixels that are not 8 or 16 bit, or a palette that is no ramp.
    """
    if len(data) < len(SIGNATURE) + 25:
        raise BadImageError(f"the file is truncated; {COPY_AGAIN}")
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, len(SIGNATURE))
    if (length, kind) != (13, b"IHDR"):
        raise BadImageError(f"the file is damaged (its header is misplaced or of a wrong length); {COPY_AGAIN}")
    if depth not in (8, 16) or colour not in _SAMPLES:
        raise BadImageError(
            f"expected an 8- or 16-bit grey or RGB image, found {depth}-bit {_COLOURS.get(colour, f'colour type {colour}')}; "
            "export the channel as grey"
        )
    if colour == _PALETTE and brightest_sample(_palette(data)) is None:
        raise BadImageError(OTHER_PALETTE)
    return PlaneHeader((height, width), "uint8" if depth == 8 else "uint16", _SAMPLES[colour], _SAMPLES[colour])


def _palette(data: bytes) -> NDArray[np.uint8]:
    """Red, green and blue of each index, (N, 3)."""
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"PLTE" and position + 8 + length <= len(data) and length and length % 3 == 0:
            return np.frombuffer(data, np.uint8, length, position + 8).reshape(-1, 3)
        position += 12 + length
    raise BadImageError(f"the file is damaged (its palette is missing or cut); {COPY_AGAIN}")


def check_png(data: bytes) -> bytes:
    """Checks everything that is visible without decompressing.

    Returns:
        The file's own CRC-32 checksums, one a PNG chunk, all verified: files of the same size and checksums count as the
        same. They cost nothing extra; a digest of the bytes would cost 2 % of packing.

    Raises:
        BadImageError: not a PNG, truncated or damaged.

    Source: PNG specification (ISO/IEC 15948), chunk layout.
    """
    if not data:
        raise BadImageError("the file is empty; copy it again")
    if not data.startswith(SIGNATURE):
        cut = SIGNATURE.startswith(data)
        raise BadImageError("the file is truncated; copy it again" if cut else "the file is not a PNG")
    position, kind, has_pixels = len(SIGNATURE), b"", False
    checksums = []
    while kind != b"IEND":
        if position + 12 > len(data):
            raise BadImageError("the file is truncated; copy it again")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise BadImageError("the file is truncated; copy it again")
        checksums.append(data[end - 4 : end])
        if deflate_crc32(data[position + 4 : end - 4]) != int.from_bytes(checksums[-1], "big"):
            raise BadImageError("the file is damaged (a checksum does not match); copy it again")
        if (kind == b"IHDR") != (position == len(SIGNATURE)):
            raise BadImageError("the file is damaged (its header is misplaced); copy it again")
        has_pixels = has_pixels or kind == b"IDAT"
        position = end
    if position != len(data) or not has_pixels:
        problem = "there is data after its end" if has_pixels else "it holds no pixels"
        raise BadImageError(f"the file is damaged ({problem}); copy it again")
    return b"".join(checksums)


def decode_png(data: bytes, index: int, out_HW: Pixels, contents: str = "") -> None:
    """Decodes a plane of a PNG that `check_png` accepted; see decode_plane.

    Raises:
        BadImageError: another form than the array's, or the compressed stream is broken although its checksums match.
    """
    header = png_header(data)
    height, width = out_HW.shape
    header.check((height, width), PIXEL_TYPES[out_HW.dtype], index, contents)
    grey = data[_COLOUR_AT] == _GREY
    stream = _plain_stream(data) if grey else None
    if stream is not None and _decode_stream(stream, out_HW):
        return
    try:
        if grey:
            png_decode(data, out=out_HW)
        else:
            sample = brightest_sample(_palette(data)) if data[_COLOUR_AT] == _PALETTE else index
            out_HW[:] = png_decode(data)[..., sample]
    except (PngError, ValueError) as error:
        raise BadImageError(f"the image data cannot be decoded ({error}); copy or export the file again") from None


def _plain_stream(data: bytes) -> bytes | None:
    """The compressed rows of an image; None if they are interlaced, or other chunks change the pixels."""
    if any(data[26:29]):  # the header's methods of compression, filtering and interlacing
        return None
    position, before = len(SIGNATURE), b""
    parts: list[bytes] = []
    while position < len(data):
        if position + 8 > len(data):
            raise BadImageError(f"the file is truncated; {COPY_AGAIN}")
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT" and (not parts or before == kind):
            parts.append(data[position + 8 : position + 8 + length])
        elif kind not in (b"IHDR", b"IEND") and (kind[:1].isupper() or kind == b"tRNS"):
            return None
        position += 12 + length
        before = kind
    return parts[0] if len(parts) == 1 else b"".join(parts)


_scratch = threading.local()


def _decode_stream(stream: bytes, out_HW: Pixels) -> bool:
    """Decodes compressed rows; returns False, with `out_HW` undefined, if they are not exactly one image."""
    (height, width), depth = out_HW.shape, out_HW.itemsize
    size = height * (width * depth + 1)  # a filter's number before each row
    filtered: bytearray | None = getattr(_scratch, "filtered", None)
    if filtered is None or len(filtered) != size:
        filtered = _scratch.filtered = bytearray(size)
    try:
        found = deflate_decode(stream, out=filtered)
    except DeflateError:  # also for too many rows, and a wrong or missing checksum of the stream
        return False
    if len(found) != len(filtered):
        return False
    decode = decode_image_png_u8 if depth == 1 else decode_image_png_u16
    try:
        # Its own inflating is slower than libdeflate and ignores the stream's checksum.
        pixels_HW1 = decode(_uncompressed(filtered, height, width, depth), (height, width), "mono")
    except Exception as error:
        if type(error) is not Exception:  # it raises bare Exception for bad data, such as an unknown filter
            raise
        return False
    np.copyto(out_HW, pixels_HW1[..., 0])
    return True


def _uncompressed(filtered: bytearray, height: int, width: int, depth: int) -> bytes:
    """A PNG of the same rows, stored uncompressed."""
    start, marks, end = _frame(height, width, depth)
    rows = memoryview(filtered)
    parts: list[bytes | memoryview] = [b"IDAT\x78\x01"]
    for mark, position in zip(marks, range(0, len(rows), _STORED), strict=True):
        parts += (mark, rows[position : position + _STORED])
    parts.append(deflate_adler32(filtered).to_bytes(4, "big"))
    body = b"".join(parts)
    return b"".join((start, body, deflate_crc32(body).to_bytes(4, "big"), end))


@lru_cache(4)
def _frame(height: int, width: int, depth: int) -> tuple[bytes, list[bytes], bytes]:
    """The constant parts of an uncompressed PNG of a size: before the rows' chunk, before each block of rows, and after."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = height * (width * depth + 1)
    lengths = [min(_STORED, rows - position) for position in range(0, rows, _STORED)]
    last = len(lengths) - 1
    marks = [struct.pack("<BHH", n == last, length, length ^ 0xFFFF) for n, length in enumerate(lengths)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * depth, _GREY, 0, 0, 0))
    whole = 2 + rows + sum(map(len, marks)) + 4
    return SIGNATURE + header + struct.pack(">I", whole), marks, chunk(b"IEND", b"")
