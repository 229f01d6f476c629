"""PNG files: every kind of damage is noticed, and accepted files decode to their pixels."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imagecodecs import PngError, png_decode

from components.core.screen import png
from components.core.screen.plane_header import BadImageError
from components.core.screen.png import check_png, decode_png, png_header
from tests.tiny_screen import raw_png

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 20), dtype=np.uint8)
GOOD = cv2.imencode(".png", PIXELS)[1].tobytes()


def encode(image, extension=".png"):
    return cv2.imencode(extension, image)[1].tobytes()


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""First column and row of each pass, and the steps between them."""


def filtered_rows(pixels, filters):
    """The scanlines of an image as the PNG specification filters them, row by row (ISO/IEC 15948, 9.2)."""
    rows, above = [], np.zeros(pixels.shape[1], int)
    for kind, row in zip(filters, pixels.astype(int), strict=True):
        left, corner = np.r_[0, row[:-1]], np.r_[0, above[:-1]]
        estimate = left + above - corner
        a, b, c = abs(estimate - left), abs(estimate - above), abs(estimate - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        predicted = (np.zeros_like(row), left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(rows)


def with_part(data, kind, body):
    """The file with one more part after its header."""
    part = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + part + data[33:]


def libpng(data):
    """The pixels that libpng decodes; None if it refuses the file."""
    out = np.zeros((20, 20), np.uint8)
    try:
        png_decode(data, out=out)
    except (PngError, ValueError):
        return None
    return out


@given(st.lists(st.integers(0, 4), min_size=20, max_size=20), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_rows_of_every_filter_decode_to_their_pixels(filters, seed, level):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), dtype=np.uint8)
    data = raw_png(20, zlib.compress(filtered_rows(pixels, filters), level))
    check_png(data)
    out = np.zeros((20, 20), np.uint8)
    decode_png(data, 0, out)
    assert np.array_equal(out, pixels)
    assert np.array_equal(out, libpng(data))


@given(st.data())
def test_a_changed_stream_decodes_as_by_libpng(data):
    stream = bytearray(zlib.compress(filtered_rows(PIXELS // 64, [4] * 20)))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    changed = raw_png(20, bytes(stream[: data.draw(st.integers(0, len(stream)))]))
    out = np.zeros((20, 20), np.uint8)
    expected = libpng(changed)
    if expected is None:
        with pytest.raises(BadImageError, match="cannot be decoded"):
            decode_png(changed, 0, out)
    else:
        decode_png(changed, 0, out)
        assert np.array_equal(out, expected)


def test_an_interlaced_file_decodes_to_its_pixels():
    passes = [PIXELS[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for each in passes for row in each))
    interlaced = bytearray(raw_png(20, stream))
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(interlaced[12:29]))
    check_png(bytes(interlaced))
    out = np.zeros((20, 20), np.uint8)
    decode_png(bytes(interlaced), 0, out)
    assert np.array_equal(out, PIXELS)


@pytest.mark.parametrize(("kind", "body"), [(b"tRNS", b"\0\5"), (b"PLTE", bytes(3)), (b"ABCD", b"")])
def test_chunks_that_change_pixels_are_left_to_libpng(kind, body):
    data = with_part(GOOD, kind, body)
    check_png(data)
    expected = libpng(data)
    assert (expected is None) == (kind != b"PLTE")
    out = np.zeros((20, 20), np.uint8)
    if expected is None:
        with pytest.raises(BadImageError, match="cannot be decoded"):
            decode_png(data, 0, out)
    else:
        decode_png(data, 0, out)
        assert np.array_equal(out, expected)


@given(st.integers(0, len(GOOD) - 1))
def test_rejects_a_file_cut_anywhere(end):
    with pytest.raises(BadImageError, match=r"truncated|empty"):
        check_png(GOOD[:end])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_rejects_one_changed_byte_anywhere(position, change):
    data = bytearray(GOOD)
    data[position] ^= change
    with pytest.raises(BadImageError, match=r"damaged|truncated|not a PNG"):
        check_png(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(PIXELS, ".jpg"), "not a PNG"),
        (b"id_code,experiment\n", "not a PNG"),
        (b"", "empty"),
        (GOOD + b"\0", "data after its end"),
        (GOOD[:33] + GOOD[-12:], "no pixels"),
    ],
)
def test_rejects_another_kind_of_file(data, message):
    with pytest.raises(BadImageError, match=message):
        check_png(data)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.uint8, np.uint16]))
def test_any_size_and_depth_decodes_to_its_pixels(height, width, dtype):
    pixels = np.random.default_rng(height * 41 + width).integers(0, np.iinfo(dtype).max + 1, (height, width), dtype)
    data = encode(pixels)
    assert (png_header(data).shape, png_header(data).dtype) == (pixels.shape, pixels.dtype.name)
    out = np.zeros_like(pixels)
    decode_png(data, 0, out)
    assert np.array_equal(out, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_real_size_is_decoded_without_libpng(monkeypatch: pytest.MonkeyPatch, dtype):
    monkeypatch.setattr(png, "png_decode", None)
    pixels = np.random.default_rng(5).integers(0, np.iinfo(dtype).max, (400, 512), dtype=dtype)
    out = np.zeros_like(pixels)
    decode_png(encode(pixels), 0, out)
    assert np.array_equal(out, pixels)
