"""Chunks: lossless with every codec, and damage is noticed before the decompressor trusts it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.core.config import PackConfig
from components.core.screen.ome_zarr import BadChunkError, decode_chunk, encode_chunk

packs = st.builds(
    PackConfig,
    codec=st.sampled_from(["lz4", "zstd"]),
    level=st.integers(0, 9),
    shuffle=st.sampled_from(["noshuffle", "shuffle", "bitshuffle"]),
)


@settings(deadline=None)
@given(arrays(np.uint8, st.tuples(st.just(6), st.integers(1, 24), st.integers(1, 24))), packs)
def test_pixels_come_back(pixels, pack):
    out = np.empty_like(pixels)
    decode_chunk(encode_chunk(pixels, pack), out)
    assert np.array_equal(out, pixels)


PIXELS = np.random.default_rng(0).integers(0, 20, (6, 16, 16), dtype=np.uint8)
CHUNK = encode_chunk(PIXELS, PackConfig())


@given(st.integers(0, len(CHUNK) - 1))
def test_a_chunk_cut_anywhere_is_refused(end):
    with pytest.raises(BadChunkError, match="truncated"):
        decode_chunk(CHUNK[:end], np.empty_like(PIXELS))


def test_a_chunk_of_another_size_is_refused():
    with pytest.raises(BadChunkError, match="holds 1536 bytes of pixels where 6144 were expected"):
        decode_chunk(CHUNK, np.empty((6, 32, 32), np.uint8))


def test_a_header_that_promises_more_than_there_is_is_refused():
    lying = bytearray(CHUNK)
    struct.pack_into("<I", lying, 12, len(CHUNK) * 2)
    with pytest.raises(BadChunkError, match="truncated or damaged"):
        decode_chunk(bytes(lying), np.empty_like(PIXELS))


def test_garbage_behind_a_right_header_is_refused():
    broken = CHUNK[:16] + b"\xff" * (len(CHUNK) - 16)
    with pytest.raises(BadChunkError, match="damaged"):
        decode_chunk(broken, np.empty_like(PIXELS))
