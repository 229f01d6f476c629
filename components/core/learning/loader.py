"""Packed sites to uint8 batches: a bounded memory of decoded sites, filled from the object store, read ahead by a thread.

S sites of a step, B batch, C channel, H and W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from components.core.screen.site_table import SiteTable


class SiteSource(Protocol):
    """Decodes sites by their row in the site table."""

    def read(self, sites: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Pixels, shape (B, C, H, W)."""


class SiteCache:
    """Sites in memory up to a limit; others are fetched each time.

    Args:
        source: where sites come from.
        table: the sites of the screen.
        shape: (C, H, W) of a site.
        limit_bytes: largest memory for decoded sites.
    """

    def __init__(self, source: SiteSource, table: SiteTable, shape: tuple[int, int, int], limit_bytes: float) -> None:
        self._source = source
        capacity = int(min(table.sites, limit_bytes // np.prod(shape)))
        # Pages of an untouched allocation cost nothing, so the limit is not paid before it is used.
        self._pixels = np.empty((capacity, *shape), dtype=np.uint8)
        self._slot_S = np.full(table.sites, -1, dtype=np.intp)
        self._used = 0
        self._shape = shape
        self.waited = 0.0

    def release(self) -> None:
        """Gives the memory back; what is read from now on is fetched."""
        self._pixels = np.empty((0, *self._shape), dtype=np.uint8)
        self._slot_S[:] = -1
        self._used = 0

    def read(self, sites: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Pixels of the sites in the given order, shape (B, C, H, W)."""
        out = np.empty((len(sites), *self._shape), dtype=np.uint8)
        slots = self._slot_S[sites]
        known = slots >= 0
        out[known] = self._pixels[slots[known]]
        if known.all():
            return out
        missing, where = np.unique(sites[~known], return_inverse=True)
        fetched = self._source.read(missing)
        out[~known] = fetched[where]
        kept = min(len(missing), len(self._pixels) - self._used)
        self._pixels[self._used : self._used + kept] = fetched[:kept]
        self._slot_S[missing[:kept]] = np.arange(self._used, self._used + kept)
        self._used += kept
        return out

    def batches(self, orders: Iterable[NDArray[np.intp]], ahead: int = 3) -> Iterator[torch.Tensor]:
        """uint8 tensors of the site batches, in order, read ahead by one thread; the cache is touched by it alone."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            waiting: list[Future[NDArray[np.uint8]]] = []
            for sites in orders:
                waiting.append(pool.submit(self.read, sites))
                if len(waiting) > ahead:
                    yield torch.from_numpy(self._wait(waiting.pop(0)))
            while waiting:
                yield torch.from_numpy(self._wait(waiting.pop(0)))

    def _wait(self, batch: Future[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        begun = time.monotonic()
        try:
            return batch.result()
        finally:
            self.waited += time.monotonic() - begun


def random_sites(table: SiteTable, wells: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """One site of each well, at random."""
    first = table.first_site_W[wells]
    return np.asarray(first + rng.integers(0, table.first_site_W[wells + 1] - first), dtype=np.intp)
