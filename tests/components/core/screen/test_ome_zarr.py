"""Packed plates as other programs read them: zarr, ome-zarr's reader, and the specification's own models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from components.core.config import CHANNELS
from components.core.storage.manifest import Manifest, PlateRecord
from tests.tiny_screen import SIZE, MemoryStore, TinyScreen


@pytest.fixture
def on_disk(packed_screen: tuple[MemoryStore, Manifest], tmp_path: Path) -> tuple[Path, PlateRecord]:
    """The first packed plate as files."""
    store, manifest = packed_screen
    store.dump(tmp_path)
    return tmp_path / manifest.plates[0].prefix, manifest.plates[0]


def test_zarr_reads_every_site(on_disk: tuple[Path, PlateRecord]):
    folder, plate = on_disk
    group = zarr.open_group(folder, mode="r", zarr_format=3)
    for well in plate.wells:
        for site in well.sites:
            path = site.key.removesuffix("/c.0.0.0")
            array = group[path]
            assert (array.shape, array.chunks, array.dtype) == ((6, SIZE, SIZE), (6, SIZE, SIZE), np.uint8)
            assert array.metadata.dimension_names == ("c", "y", "x")
            assert np.array_equal(array[:], TinyScreen.pixels(plate.experiment, plate.plate, well.well, site.site))


def test_every_metadata_object_of_the_hierarchy_is_there(packed_screen: tuple[MemoryStore, Manifest]):
    store, manifest = packed_screen
    prefix = manifest.plates[0].prefix
    keys = {key.removeprefix(f"{prefix}/") for key in store.list(f"{prefix}/")}
    expected = {"zarr.json", "plate.json", "B/zarr.json", "C/zarr.json"}
    for well in ("B/02", "B/03", "B/04", "C/02", "C/03"):
        expected.add(f"{well}/zarr.json")
        for field in (0, 1):
            expected |= {f"{well}/{field}{end}" for end in ("/zarr.json", "/0/zarr.json", "/0/c.0.0.0")}
    assert keys == expected


def test_the_ome_zarr_reader_shows_the_plate_as_a_mosaic(on_disk: tuple[Path, PlateRecord]):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Plate, Reader

    folder, plate = on_disk
    location = parse_url(str(folder))
    assert location is not None
    node = next(iter(Reader(location)()))
    assert any(isinstance(spec, Plate) for spec in node.specs)
    mosaic = np.asarray(node.data[0])
    assert mosaic.shape == (6, 2 * SIZE, 3 * SIZE)  # rows B-C, columns 02-04
    for well, (row, column) in {"B02": (0, 0), "B04": (0, 2), "C03": (1, 1)}.items():
        tile = mosaic[:, row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE]
        assert np.array_equal(tile, TinyScreen.pixels(plate.experiment, plate.plate, well, 1))
    assert not mosaic[:, SIZE:, 2 * SIZE :].any()
    assert node.metadata["channel_names"] == list(CHANNELS)


def test_the_metadata_satisfies_the_models_of_the_specification(on_disk: tuple[Path, PlateRecord]):
    models = pytest.importorskip("ome_zarr_models.v05", reason="ome-zarr-models is not installed")
    folder, plate = on_disk
    hcs = models.HCS.from_zarr(zarr.open_group(folder, mode="r", zarr_format=3))
    attributes = hcs.attributes.ome
    assert attributes.version == "0.5"
    assert attributes.plate.name == f"{plate.experiment} plate {plate.plate}"
    assert [well.path for well in attributes.plate.wells] == [f"{w.well[0]}/{w.well[1:]}" for w in plate.wells]
    image = models.Image.from_zarr(zarr.open_group(folder / "B/03/0", mode="r", zarr_format=3))
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["c", "y", "x"]
