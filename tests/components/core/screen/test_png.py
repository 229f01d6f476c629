"""Image bytes: every kind of damage is noticed, and what is accepted decodes to the pixels."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.screen.png import BadPngError, check_png, decode_png
from tests.tiny_screen import raw_png

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 20), dtype=np.uint8)
GOOD = cv2.imencode(".png", PIXELS)[1].tobytes()


def encode(image, extension=".png"):
    return cv2.imencode(extension, image)[1].tobytes()


SCANLINES = b"".join(b"\0" + row.tobytes() for row in PIXELS)


@pytest.mark.parametrize("data", [GOOD, raw_png(20, zlib.compress(SCANLINES))], ids=["opencv", "by hand"])
def test_a_good_file_decodes_to_its_pixels(data):
    check_png(data, 20)
    out = np.zeros((20, 20), np.uint8)
    decode_png(data, out)
    assert np.array_equal(out, PIXELS)


@given(st.integers(0, len(GOOD) - 1))
def test_a_file_cut_anywhere_is_refused(end):
    with pytest.raises(BadPngError, match=r"truncated|empty"):
        check_png(GOOD[:end], 20)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_one_changed_byte_anywhere_is_refused(position, change):
    data = bytearray(GOOD)
    data[position] ^= change
    with pytest.raises(BadPngError, match=r"damaged|truncated|not a PNG"):
        check_png(bytes(data), 20)


@pytest.mark.parametrize(
    "stream",
    [
        zlib.compress(SCANLINES[: len(SCANLINES) // 2]),
        zlib.compress(SCANLINES)[:100],
        zlib.compress(SCANLINES)[:-4] + b"abcd",
        b"",
    ],
    ids=["half the rows", "half the stream", "wrong Adler-32", "nothing"],
)
def test_a_broken_stream_with_right_checksums_is_refused_by_the_decoder(stream):
    data = raw_png(20, stream)
    check_png(data, 20)
    with pytest.raises(BadPngError, match="cannot be decoded"):
        decode_png(data, np.zeros((20, 20), np.uint8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(np.zeros((20, 20), np.uint16)), "expected an 8-bit grey image, found 16-bit grey"),
        (encode(np.zeros((20, 20, 3), np.uint8)), "expected an 8-bit grey image, found 8-bit RGB"),
        (encode(np.zeros((20, 20, 4), np.uint8)), "found 8-bit RGB with alpha"),
        (encode(np.zeros((10, 20), np.uint8)), "expected 20x20 pixels, found 20x10"),
        (encode(np.zeros((64, 64), np.uint8)), "expected 20x20 pixels, found 64x64"),
        (encode(PIXELS, ".jpg"), "not a PNG"),
        (b"id_code,experiment\n", "not a PNG"),
        (b"", "empty"),
        (GOOD + b"\0", "data after its end"),
        (GOOD[:33] + GOOD[-12:], "no pixels"),
    ],
)
def test_another_kind_of_file_is_refused_by_name(data, message):
    with pytest.raises(BadPngError, match=message):
        check_png(data, 20)
