"""Packed sites to uint8 batches: fetched and decoded by threads straight into the batch, some batches ahead.

S sites of a screen, B of a batch, C channel, H and W pixels.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core.learning.decoded_sites import DecodedSites
from components.core.learning.host_memory import Rooms
from components.core.learning.workers import Workers
from components.core.screen.site_table import SiteTable

_TASK_BYTES = 2**20
"""A thread takes sites of about so many bytes at once: one of 512 pixels, or 75 of 48."""


class SiteSource(Protocol):
    """Decodes sites by their row in the site table."""

    def read_into(self, sites: NDArray[np.intp], out: Sequence[NDArray[np.uint8]]) -> None:
        """Decodes each site, all different, into its array of shape (C, H, W); called by many threads at once."""


class SiteCache:
    """Batches of sites. Those in memory are copied; the others are fetched, each time unless there is room to keep them.

    Memory: the limit for decoded sites, and `ahead + 2` batches (the one that the consumer has, the next, and those ahead of
    it), which are kept for the next epoch; in the source one packed site a thread.

    Args:
        source: where sites come from.
        table: the sites of the screen.
        shape: (C, H, W) of a site.
        limit_bytes: largest memory for decoded sites.
        threads: sites fetched at a time.
        ahead: batches read ahead of the next one.
        pinned: whether batches lie in page-locked memory, for a CUDA device.

    Attributes:
        waited: seconds that consumers have waited for a batch so far.
    """

    def __init__(
        self,
        source: SiteSource,
        table: SiteTable,
        shape: tuple[int, int, int],
        limit_bytes: float,
        threads: int = 8,
        ahead: int = 3,
        pinned: bool = False,
    ) -> None:
        self.waited = 0.0
        self._source = source
        self._shape = shape
        self._memory = DecodedSites(table.sites, shape, limit_bytes)
        self._rooms = Rooms()
        self._threads = threads
        self._ahead = ahead
        self._pinned = pinned
        self._per_task = max(1, _TASK_BYTES // int(np.prod(shape)))

    def release(self) -> None:
        """Gives the memory of decoded sites back; what is read from now on is fetched."""
        self._memory.release()
        self._rooms.clear()

    def read(self, sites: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Pixels of the sites in the given order, shape (B, C, H, W); read by the calling thread."""
        batch = _Batch(sites, self._room(len(sites)), self._per_task)
        for part in batch.parts:
            self._read((batch, part))
        return batch.wait().numpy()

    def batches(self, orders: Iterable[NDArray[np.intp]]) -> Iterator[Tensor]:
        """uint8 tensors of the site batches, in order. The reading threads end with the iterator, however it ends."""
        workers = Workers(self._read, self._threads, "loader")
        try:
            waiting: deque[_Batch] = deque()
            for sites in orders:
                batch = _Batch(sites, self._room(len(sites)), self._per_task)
                for part in batch.parts:
                    workers.submit((batch, part))
                waiting.append(batch)
                if len(waiting) > self._ahead:
                    yield self._taken(waiting.popleft())
            while waiting:
                yield self._taken(waiting.popleft())
        finally:
            workers.close()

    def _room(self, count: int) -> Tensor:
        """Memory of a batch."""
        if self._pinned:
            return torch.empty((count, *self._shape), dtype=torch.uint8, pin_memory=True)
        return self._rooms.take((count, *self._shape))

    def _taken(self, batch: _Batch) -> Tensor:
        begun = time.perf_counter()
        try:
            return batch.wait()
        finally:
            self.waited += time.perf_counter() - begun

    def _read(self, task: tuple[_Batch, slice]) -> None:
        """Fills a part of a batch."""
        batch, part = task
        try:
            sites, out_BCHW = batch.sites[part], batch.pixels[part]
            missing = np.flatnonzero(~self._memory.copy_into(sites, out_BCHW))
            if len(missing):
                places = [out_BCHW[k] for k in missing]
                self._source.read_into(sites[missing], places)
                self._memory.keep(sites[missing], places)
        except BaseException as error:  # the consumer raises it
            batch.finished(part, error)
        else:
            batch.finished(part, None)


class _Batch:
    """A batch that threads fill part by part. A site that is asked for twice is read to its first place and copied."""

    def __init__(self, sites: NDArray[np.intp], room: Tensor, per_task: int) -> None:
        self._whole = room
        self._lock = threading.Lock()
        self._complete = threading.Event()
        self._errors: dict[int, BaseException] = {}
        different, self._where = np.unique(sites, return_inverse=True)
        self._repeats = len(different) < len(sites)
        if self._repeats:
            sites, room = different, room[: len(different)]
        self.sites = sites
        self.pixels: NDArray[np.uint8] = room.numpy()
        self.parts = [slice(k, k + per_task) for k in range(0, len(sites), per_task)]
        self._left = len(self.parts)
        if not self.parts:
            self._complete.set()

    def finished(self, part: slice, error: BaseException | None) -> None:
        """Said by the thread that has filled a part, or failed to."""
        with self._lock:
            if error is not None:
                self._errors[part.start] = error
            self._left -= 1
            if self._left == 0:
                self._complete.set()

    def wait(self) -> Tensor:
        """The pixels, when they are there; raises the error of the first part that has one."""
        self._complete.wait()
        if self._errors:
            raise self._errors[min(self._errors)]
        if self._repeats:
            self._whole.copy_(torch.from_numpy(self.pixels[self._where]))
        return self._whole


def random_sites(table: SiteTable, wells: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """One site of each well, at random."""
    first = table.first_site_W[wells]
    return np.asarray(first + rng.integers(0, table.first_site_W[wells + 1] - first), dtype=np.intp)


def random_site_batches(
    table: SiteTable, batches: Sequence[NDArray[np.intp]], rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """One site of each well of each batch; the same draws as random_sites makes batch by batch, made at once."""
    if not batches:
        return []
    sites = random_sites(table, np.concatenate(batches), rng)
    return np.split(sites, np.cumsum([len(wells) for wells in batches])[:-1])
