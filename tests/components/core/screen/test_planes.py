"""Planes of image files against tifffile and OpenCV, on files made here and on real ones of screens."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.core.screen.plane_header import BadImageError
from components.core.screen.planes import checksums, decode_plane, plane_header

SCREENS = Path(__file__).resolve().parents[5] / "shared" / "screens"
REAL = sorted(path for path in SCREENS.rglob("*") if path.suffix.lower() in (".tif", ".tiff"))
PIXELS = np.random.default_rng(0).normal(900, 200, (2, 3, 41, 57)).clip(0, 60000).astype(np.uint16)
BYTES = (PIXELS[0, 0] % 256).astype(np.uint8)
STRIPS = {"compression": "lzw", "predictor": True, "rowsperstrip": 7}


def tiff(pixels, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def coloured(kind: str, palette: list[tuple[int, int, int]]) -> bytes:
    """BYTES as indices of a palette."""
    picture = Image.fromarray(BYTES)
    picture.putpalette(list(itertools.chain(*palette)))
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def plane(data, index=0):
    header = plane_header(data)
    checksums(data)
    out = np.zeros(header.shape, header.dtype)
    decode_plane(data, index, out)
    return out


def recorded(data: bytes, change) -> bytes:
    """The file with the offset and size of its last strip or tile changed."""
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    changed = bytearray(data)
    values = change(page.dataoffsets[-1], page.databytecounts[-1])
    names = ("TileOffsets", "TileByteCounts") if page.is_tiled else ("StripOffsets", "StripByteCounts")
    for name, value in zip(names, values, strict=True):
        tag = page.tags[name]
        size = {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
        at = tag.valueoffset + (tag.count - 1) * size
        changed[at : at + size] = value.to_bytes(size, "little")
    return bytes(changed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True},
        {"byteorder": ">"},
        STRIPS,
        {"compression": "zlib", "predictor": True, "byteorder": ">"},
        {"compression": "zlib", "tile": (16, 32)},
        {"tile": (16, 16)},
        {"compression": "packbits"},
        {"compression": "jpegxl", "compressionargs": {"level": 101}},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_of_every_form_decode_to_their_pixels(options, dtype):
    pixels = (PIXELS[0, 0] // (1 if dtype == np.uint16 else 8)).astype(dtype)
    data = tiff(pixels, **options)
    header = plane_header(data)
    assert (header.shape, header.dtype, header.planes) == ((41, 57), np.dtype(dtype).name, 1)
    assert np.array_equal(plane(data), pixels)


def test_planes_are_pages_and_their_samples():
    stack = tiff(PIXELS[0], photometric="minisblack", compression="lzw")
    assert plane_header(stack).planes == 3
    for index in range(3):
        assert np.array_equal(plane(stack, index), PIXELS[0, index])
    for planar in ("contig", "separate"):
        colour = np.moveaxis(PIXELS, 1, -1) if planar == "contig" else PIXELS
        data = tiff(colour, photometric="rgb", planarconfig=planar)
        assert plane_header(data).planes == 6
        for index in range(6):
            assert np.array_equal(plane(data, index), PIXELS.reshape(6, 41, 57)[index])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("shades", [(1, 1, 1), (0, 1, 0), (0.3, 0.5, 1)], ids=str)
def test_a_palette_of_shades_is_read_as_grey(kind, shades):
    palette = [tuple(round(share * n) for share in shades) for n in range(256)]
    assert np.array_equal(plane(coloured(kind, palette)), BYTES)


@pytest.mark.parametrize("options", [{}, STRIPS, {"byteorder": ">"}], ids=str)
def test_signed_pixels_that_are_not_negative_are_read(options):
    data = tiff(PIXELS[0, 0].clip(0, 32767).astype(np.int16), **options)
    assert plane_header(data).dtype == "uint16"
    assert np.array_equal(plane(data), PIXELS[0, 0].clip(0, 32767))


def test_smaller_versions_of_a_page_are_no_planes():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels in PIXELS[0, :2]:
            writer.write(pixels)
            writer.write(pixels[::2, ::2], subfiletype=1)
    assert plane_header(file.getvalue()).planes == 2
    assert np.array_equal(plane(file.getvalue(), 1), PIXELS[0, 1])


@pytest.mark.skipif(not REAL, reason="no real screens beside the repository")
@pytest.mark.parametrize("path", REAL[:: max(1, len(REAL) // 25)], ids=lambda path: path.name)
def test_real_tiffs_agree_with_tifffile(path: Path):
    data = path.read_bytes()
    pages = [page.asarray() for page in tifffile.TiffFile(path).pages]
    header = plane_header(data)
    assert (header.shape, header.dtype, header.planes) == (pages[0].shape, pages[0].dtype.name, len(pages))
    for index, page in enumerate(pages):
        assert np.array_equal(plane(data, index), page)


def test_a_colour_png_and_jpegs_have_a_plane_for_each_sample():
    colour = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for picture, samples in ((colour, 3), (np.dstack([colour, colour[..., :1]]), 3)):
        data = cv2.imencode(".png", picture)[1].tobytes()
        assert plane_header(data).planes == samples
        for index in range(3):
            assert np.array_equal(plane(data, index), colour[..., 2 - index])  # OpenCV's order is blue, green, red
    smooth = cv2.GaussianBlur(colour, (0, 0), 5)
    data = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert all(np.abs(plane(data, k).astype(int) - expected[..., 2 - k]).max() <= 1 for k in range(3))
    grey = cv2.imencode(".jpg", smooth[..., 0])[1].tobytes()
    assert plane_header(grey).planes == 1
    assert np.array_equal(plane(grey), cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_GRAYSCALE))


FILES = {
    "png": cv2.imencode(".png", PIXELS[0, 0])[1].tobytes(),
    "tiff": tiff(PIXELS[0, 0]),
    "lzw": tiff(PIXELS[0, 0], **STRIPS),
    "tiles": tiff(PIXELS[0, 0], compression="zlib", tile=(16, 16)),
    "jpeg": cv2.imencode(".jpg", (PIXELS[0, 0] // 8).astype(np.uint8))[1].tobytes(),
}


@pytest.mark.parametrize("kind", FILES)
@given(share=st.floats(0, 1, exclude_max=True))
def test_rejects_a_file_cut_anywhere(kind, share):
    data = FILES[kind]
    with pytest.raises(BadImageError, match=r"truncated|damaged|empty|cannot be decoded"):
        plane(data[: int(share * len(data))])


@pytest.mark.parametrize("kind", ["lzw", "tiles"])
@given(seed=st.integers(0, 2**32 - 1))
def test_rejects_a_broken_strip_or_tile(kind, seed):
    data = bytearray(FILES[kind])
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    offset, count = page.dataoffsets[-1], page.databytecounts[-1]
    data[offset : offset + count] = b"\xff" * count
    with pytest.raises(BadImageError, match="cannot be decoded"):
        plane(bytes(data))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("lzw", lambda offset, count: (offset, 0), "strip 6 of 6 is empty"),
        ("tiles", lambda offset, count: (0, count), "tile 12 of 12 is empty"),
        ("lzw", lambda offset, count: (offset, count // 2), "cannot be decoded"),
        ("tiff", lambda offset, count: (offset, count // 2), "hold too few bytes"),
        ("tiff", lambda offset, count: (offset + 9, count), "strip 1 of 1 ends behind it"),
    ],
)
def test_rejects_sizes_of_strips_that_cannot_be(kind, change, message):
    with pytest.raises(BadImageError, match=message):
        plane(recorded(FILES[kind], change))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"II*", "truncated"),
        (b"id_code,experiment\n", "expected a PNG, TIFF or JPEG, found a file that begins with b'id_code,'"),
        (b"BM" + bytes(50), "found a BMP"),
        (b"version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
        (tiff(PIXELS[0, 0].astype(np.float32)), "expected 8- or 16-bit unsigned pixels, found float32"),
        (tiff(PIXELS[0, 0].astype(np.int32)), "found int32"),
        (tiff(PIXELS[0, 0].astype(np.int16) - 2000), "pixels below zero"),
        (tiff(PIXELS[0, 0], photometric="miniswhite"), "white is zero"),
        (coloured("TIFF", [(255 - n, n // 2, n) for n in range(256)]), "a palette other than"),
        (coloured("PNG", [(255 - n, n // 2, n) for n in range(256)]), "a palette other than"),
        (
            cv2.imencode(".png", np.zeros((9, 9), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes(),
            "found 1-bit grey",
        ),
    ],
)
def test_rejects_another_kind_of_file(data, message):
    with pytest.raises(BadImageError, match=message):
        plane(data)


@pytest.mark.parametrize("kind", ["png", "tiff", "lzw"])
@pytest.mark.parametrize(
    ("shape", "dtype", "index", "message"),
    [
        ((57, 41), np.uint16, 0, r"expected 57x41 pixels \(height x width\), found 41x57"),
        ((41, 57), np.uint8, 0, "expected 8-bit pixels, found 16-bit"),
        ((41, 57), np.uint16, 1, "there is no plane 1, it has 1"),
    ],
)
def test_rejects_another_form_than_the_arrays(kind, shape, dtype, index, message):
    with pytest.raises(BadImageError, match=message):
        decode_plane(FILES[kind], index, np.zeros(shape, dtype))


@pytest.mark.parametrize("kind", FILES)
def test_checksums_tell_changed_files_apart(kind):
    changed = bytearray(FILES[kind])
    changed[len(changed) // 2] ^= 1
    try:
        assert checksums(bytes(changed)) != checksums(FILES[kind])
    except BadImageError:
        assert kind == "png"
