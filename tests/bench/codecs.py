"""Blosc's codecs on 512-pixel sites: bytes beside the PNGs', and milliseconds a site to pack and to read it.

Only settings that PackConfig takes. Its filter `shuffle` is left out: it reorders the bytes of a value, and these have one.
CPU time of one thread, for Blosc's own threads are off.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np

from components.core.config import PackConfig
from components.core.screen.ome_zarr import decode_chunk, encode_chunk
from tests.bench.row import Row, report
from tests.bench.sites import SIZE, origin, png_sites

LEVELS: dict[Literal["lz4", "zstd"], tuple[int, ...]] = {"lz4": (1, 5, 9), "zstd": (1, 3, 5)}
FILTERS: tuple[Literal["noshuffle", "bitshuffle"], ...] = ("bitshuffle", "noshuffle")
REPEATS = 3


def rows() -> list[Row]:
    """A row for every setting, the shipped one marked."""
    pngs = png_sites()
    png_bytes = sum(len(data) for site in pngs for data in site)
    sites = [np.stack([cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_GRAYSCALE) for d in site]) for site in pngs]
    settings = [
        PackConfig(codec=codec, level=level, shuffle=shuffle)
        for shuffle in FILTERS
        for codec, levels in LEVELS.items()
        for level in levels
    ]
    out_CSS = np.empty((6, SIZE, SIZE), np.uint8)
    found = []
    for pack in settings:
        report(f"codec {pack.codec} {pack.level} {pack.shuffle}")
        chunks = [encode_chunk(pixels_CSS, pack) for pixels_CSS in sites]
        encode = _milliseconds(lambda n, pack=pack: encode_chunk(sites[n], pack), len(sites))
        decode = _milliseconds(lambda n, chunks=chunks: decode_chunk(chunks[n], out_CSS), len(sites))
        shipped = "; shipped" if pack == PackConfig() else ""
        size = sum(map(len, chunks)) / png_bytes
        name = f"codec {pack.codec} {pack.level} {pack.shuffle}"
        note = f"{encode:.2f} ms to pack a site, {decode:.2f} ms to read it; {origin()}{shipped}"
        found.append(Row(name, size, "x PNG bytes", 1.0, 1 / size, note))
    return found


def _milliseconds(work: Callable[[int], object], sites: int) -> float:
    """Median over repeats of the mean CPU time of a site."""
    taken = []
    for _ in range(REPEATS):
        begun = time.thread_time()
        for n in range(sites):
            work(n)
        taken.append((time.thread_time() - begun) / sites * 1e3)
    return statistics.median(taken)
