"""Packed plates as other programs read them (zarr, ome-zarr, the specification's models), and damaged chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.core.config import CHANNELS, PackConfig
from components.core.screen.ome_zarr import BadChunkError, decode_chunk, encode_chunk
from components.core.storage.manifest import Manifest, PlateRecord
from components.core.storage.object_store import ObjectStore
from tests.tiny_screen import SIZE, MemoryStore, TinyScreen


@pytest.fixture
def on_disk(screen: tuple[MemoryStore, Manifest], tmp_path: Path) -> tuple[Path, PlateRecord]:
    """The first packed plate in a folder store."""
    memory, manifest = screen
    ObjectStore(tmp_path).put_many(memory.objects.items())
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


packs = st.builds(
    PackConfig,
    codec=st.sampled_from(["lz4", "zstd"]),
    level=st.integers(0, 9),
    shuffle=st.sampled_from(["noshuffle", "shuffle", "bitshuffle"]),
)


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.just(6), st.integers(1, 24), st.integers(1, 24))), packs)
def test_every_codec_is_lossless(pixels, pack):
    out = np.empty_like(pixels)
    decode_chunk(encode_chunk(pixels, pack), out)
    assert np.array_equal(out, pixels)


PIXELS = np.random.default_rng(0).integers(0, 20, (6, 16, 16), dtype=np.uint8)
CHUNK = encode_chunk(PIXELS, PackConfig())


@given(st.integers(0, len(CHUNK) - 1))
def test_rejects_a_chunk_cut_anywhere(end):
    with pytest.raises(BadChunkError, match="truncated"):
        decode_chunk(CHUNK[:end], np.empty_like(PIXELS))


def test_rejects_a_chunk_of_another_size():
    with pytest.raises(BadChunkError, match="holds 1536 bytes of pixels, expected 6144"):
        decode_chunk(CHUNK, np.empty((6, 32, 32), np.uint8))


def test_rejects_garbage_behind_a_good_header():
    broken = CHUNK[:16] + b"\xff" * (len(CHUNK) - 16)
    with pytest.raises(BadChunkError, match="damaged"):
        decode_chunk(broken, np.empty_like(PIXELS))
