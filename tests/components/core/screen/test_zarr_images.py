"""Planes of OME-Zarr images against zarr, for both versions of Zarr and NGFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from components.core.screen.plane_header import BadImageError
from components.core.screen.planes import checksums, decode_plane, plane_header
from components.core.screen.screen_source import ScreenDirectory, UnreadableError
from components.core.screen.zarr_images import is_zarr, open_image, read_zarr_planes

SCREENS = Path(__file__).resolve().parents[5] / "shared" / "screens"
PIXELS = np.random.default_rng(0).integers(0, 4000, (2, 3, 2, 20, 33), dtype=np.uint16)
IMAGE = "plate.zarr/B/03/0"


def write_image(root: Path, version: int, pixels=PIXELS, axes="tczyx", **options) -> ScreenDirectory:
    """An image with one dataset, of chunks that do not divide it."""
    group = zarr.open_group(root / IMAGE, mode="w", zarr_format=version)
    chunks = options.pop("chunks", (1,) * (len(axes) - 2) + (12, 16))
    group.create_array("0", data=pixels, chunks=chunks, **options)
    units = {"unit": "micrometer"}
    described = [{"name": axis, "type": "space", **(units if axis in "zyx" else {})} for axis in axes]
    scale = [{"type": "scale", "scale": [1.0] * (len(axes) - 2) + [0.65, 0.65]}]
    multiscales = [{"axes": described, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
    group.attrs.update({"multiscales": multiscales} if version == 2 else {"ome": {"multiscales": multiscales}})
    return ScreenDirectory(root)


def decoded(source, indices, path=IMAGE):
    found = []
    for index, plane in zip(indices, read_zarr_planes(source, [(path, k) for k in indices]), strict=True):
        header = plane_header(plane)
        found.append(np.empty(header.shape, header.dtype))
        decode_plane(plane, index, found[-1])
    return np.array(found)


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (2, {}),
        (2, {"chunks": (2, 2, 2, 20, 33)}),
        (3, {}),
        (3, {"chunks": (1, 1, 1, 5, 16), "shards": (1, 3, 2, 10, 32)}),
    ],
)
def test_planes_are_those_of_the_array_in_c_order(tmp_path: Path, version, options):
    source = write_image(tmp_path, version, **options)
    assert np.array_equal(decoded(source, range(12)), PIXELS.reshape(12, 20, 33))
    assert np.array_equal(decoded(source, [7, 2, 7]), PIXELS.reshape(12, 20, 33)[[7, 2, 7]])
    assert open_image(source, IMAGE).pixel_size == pytest.approx(0.65)


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_not_written_holds_the_fill_value(tmp_path: Path, version):
    pixels = PIXELS[0].copy()
    pixels[1, 0, :12, :16] = 0
    source = write_image(tmp_path, version, pixels, "czyx")
    assert np.array_equal(decoded(source, range(6)), pixels.reshape(6, 20, 33))


def test_one_plane_without_other_axes(tmp_path: Path):
    source = write_image(tmp_path, 3, PIXELS[0, 0, 0], "yx")
    assert np.array_equal(decoded(source, [0])[0], PIXELS[0, 0, 0])


@pytest.mark.skipif(not (SCREENS / "omezarr").is_dir(), reason="no real screens beside the repository")
def test_a_real_plate_agrees_with_zarr():
    source, path = ScreenDirectory(SCREENS / "omezarr"), "plate_ones.zarr/B/03/0"
    expected = zarr.open_array(SCREENS / "omezarr" / path / "0", mode="r")[:]
    assert np.array_equal(decoded(source, range(6), path), expected.reshape(6, 1080, 1280))
    assert open_image(source, path).pixel_size == pytest.approx(0.1625)


def test_a_damaged_chunk_is_refused_and_has_other_checksums(tmp_path: Path):
    source = write_image(tmp_path, 3)
    (before,) = read_zarr_planes(source, [(IMAGE, 0)])
    chunk = next((tmp_path / IMAGE / "0" / "c" / "0" / "0" / "0").rglob("0"))
    chunk = chunk if chunk.is_file() else next(path for path in chunk.rglob("*") if path.is_file())
    chunk.write_bytes(b"\xff" * 20)
    (after,) = read_zarr_planes(source, [(IMAGE, 0)])
    assert checksums(before) != checksums(after)
    with pytest.raises(BadImageError, match="a chunk of it cannot be decoded"):
        decode_plane(after, 0, np.empty((20, 33), np.uint16))


@pytest.mark.parametrize("old", ['"fill_value": 0', '"uint16"', '"endian": "little"'])
def test_images_of_the_same_chunks_and_other_metadata_have_other_checksums(tmp_path: Path, old):
    source = write_image(tmp_path, 3, compressors=None)
    path = tmp_path / IMAGE / "0" / "zarr.json"
    (before,) = read_zarr_planes(source, [(IMAGE, 0)])
    assert old in path.read_text()
    new = {'"fill_value": 0': '"fill_value": 9', '"uint16"': '"int16"'}.get(old, '"endian": "big"')
    path.write_text(path.read_text().replace(old, new))
    (after,) = read_zarr_planes(source, [(IMAGE, 0)])
    assert before.files == after.files
    assert checksums(before) != checksums(after)


@pytest.mark.parametrize(
    ("document", "change", "message"),
    [
        ("zarr.json", lambda text: text[:40], "no metadata of an OME-Zarr image"),
        ("zarr.json", lambda text: text.replace("multiscales", "others"), "`multiscales` lacks axes or datasets"),
        (
            "zarr.json",
            lambda text: text.replace('"name": "y"', '"name": "x"'),
            "axes that end in y and x, found t, c, z, x",
        ),
        ("0/zarr.json", lambda text: text.replace("regular", "other"), "no metadata of an array"),
        ("zarr.json", None, "neither zarr.json nor .zattrs"),
        ("0/zarr.json", None, "No such file"),
    ],
)
def test_rejects_what_is_no_image(tmp_path: Path, document, change, message):
    source = write_image(tmp_path, 3)
    path = tmp_path / IMAGE / document
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(UnreadableError, match=message):
        read_zarr_planes(source, [(IMAGE, 0)])


def test_rejects_a_plane_that_is_not_there(tmp_path: Path):
    with pytest.raises(UnreadableError, match=r"there is no plane 12, it has 12"):
        read_zarr_planes(write_image(tmp_path, 2), [(IMAGE, 12)])


def test_a_path_leads_into_a_zarr_by_its_name():
    assert is_zarr("screen/plate1.ome.zarr/B/03/0")
    assert is_zarr("B/03/0")
    assert not is_zarr("B/03/0.tif")
    assert not is_zarr("screen/zarr/plate1.zarr.tif")
