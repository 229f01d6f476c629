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
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STORED = 2**16 - 1
"""Most bytes of a stored (uncompressed) block of a zlib stream."""
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


class BadPngError(ValueError):
    """Why the bytes are not a readable 8-bit grey PNG of the expected size; the caller adds the file's name."""


def check_png(data: bytes, size: int) -> bytes:
    """Checks everything that is visible without decompressing; `size` is the expected side, pixels.

    Returns:
        The file's own CRC-32 checksums, one a PNG chunk, all verified: files of the same size and checksums count as the
        same. They cost nothing extra; a digest of the bytes would cost 2 % of packing.

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
        if deflate_crc32(data[position + 4 : end - 4]) != int.from_bytes(checksums[-1], "big"):
            raise BadPngError("the file is damaged (a checksum does not match); copy it again")
        if (kind == b"IHDR") != (position == len(_SIGNATURE)):
            raise BadPngError("the file is damaged (its header is misplaced); copy it again")
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
        raise BadPngError(
            f"expected {size}x{size} pixels, found {width}x{height}; resize the images, or train with another screen.image_size"
        )


def decode_png(data: bytes, out_HW: NDArray[np.uint8]) -> None:
    """Decodes a PNG that `check_png` accepted.

    Raises:
        BadPngError: the compressed stream is broken although its checksums match.
    """
    stream = _plain_stream(data)
    if stream is not None and _decode_stream(stream, out_HW):
        return
    try:
        png_decode(data, out=out_HW)
    except (PngError, ValueError) as error:
        raise BadPngError(f"the image data cannot be decoded ({error}); copy or export the file again") from None


def _plain_stream(data: bytes) -> bytes | None:
    """The compressed rows of an image; None if they are interlaced, or other chunks change the pixels."""
    if any(data[26:29]):  # the header's methods of compression, filtering and interlacing
        return None
    position, before = len(_SIGNATURE), b""
    parts: list[bytes] = []
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT" and (not parts or before == kind):
            parts.append(data[position + 8 : position + 8 + length])
        elif kind not in (b"IHDR", b"IEND") and (kind[:1].isupper() or kind == b"tRNS"):
            return None
        position += 12 + length
        before = kind
    return parts[0] if len(parts) == 1 else b"".join(parts)


_scratch = threading.local()


def _decode_stream(stream: bytes, out_HW: NDArray[np.uint8]) -> bool:
    """Decodes compressed rows; returns False, with `out_HW` undefined, if they are not exactly one image."""
    size = len(out_HW)
    filtered: bytearray | None = getattr(_scratch, "filtered", None)
    if filtered is None or len(filtered) != size * (size + 1):  # a filter's number before each row
        filtered = _scratch.filtered = bytearray(size * (size + 1))
    try:
        found = deflate_decode(stream, out=filtered)
    except DeflateError:  # also for too many rows, and a wrong or missing checksum of the stream
        return False
    if len(found) != len(filtered):
        return False
    try:
        # Its own inflating is slower than libdeflate and ignores the stream's checksum.
        pixels_HW1 = decode_image_png_u8(_uncompressed(filtered, size), (size, size), "mono")
    except Exception as error:
        if type(error) is not Exception:  # it raises bare Exception for bad data, such as an unknown filter
            raise
        return False
    np.copyto(out_HW, pixels_HW1[..., 0])
    return True


def _uncompressed(filtered: bytearray, size: int) -> bytes:
    """A PNG of the same rows, stored uncompressed."""
    start, marks, end = _frame(size)
    rows = memoryview(filtered)
    parts: list[bytes | memoryview] = [b"IDAT\x78\x01"]
    for mark, position in zip(marks, range(0, len(rows), _STORED), strict=True):
        parts += (mark, rows[position : position + _STORED])
    parts.append(deflate_adler32(filtered).to_bytes(4, "big"))
    body = b"".join(parts)
    return b"".join((start, body, deflate_crc32(body).to_bytes(4, "big"), end))


@lru_cache(4)
def _frame(size: int) -> tuple[bytes, list[bytes], bytes]:
    """The constant parts of an uncompressed PNG of a size: before the rows' chunk, before each block of rows, and after."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = size * (size + 1)
    lengths = [min(_STORED, rows - position) for position in range(0, rows, _STORED)]
    last = len(lengths) - 1
    marks = [struct.pack("<BHH", n == last, length, length ^ 0xFFFF) for n, length in enumerate(lengths)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0))
    whole = 2 + rows + sum(map(len, marks)) + 4
    return _SIGNATURE + header + struct.pack(">I", whole), marks, chunk(b"IEND", b"")
