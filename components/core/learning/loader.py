"""Packed sites to uint8 batches: fetched and decoded by threads straight into the batch, some batches ahead.

S sites of a screen, B sites of a batch, C channel, H and W pixels.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core.learning.memory import BatchMemory
from components.core.screen.site_table import SiteTable

_NONE, _COMING = -1, -2


class DecodedSites:
    """Decoded sites in memory: the first ones that were read, up to a limit. Thread-safe.

    They are never replaced: an epoch reads every site about once, so replacing some by later ones would only cost copies.

    Args:
        sites: S, the number of sites of the screen.
        shape: (C, H, W) of a site.
        limit_bytes: largest memory for pixels.
    """

    def __init__(self, sites: int, shape: tuple[int, int, int], limit_bytes: float) -> None:
        self._sites = sites
        self._shape = shape
        self._lock = threading.Lock()
        self._empty(int(min(sites, limit_bytes // np.prod(shape))))

    def _empty(self, capacity: int) -> None:
        # Untouched pages of an allocation cost nothing, so memory grows with its use.
        self._pixels = np.empty((capacity, *self._shape), dtype=np.uint8)
        self._slot_S = np.full(self._sites, _NONE, dtype=np.intp)
        self._used = 0

    @property
    def nbytes(self) -> int:
        """Largest memory of the pixels."""
        return self._pixels.nbytes

    def release(self) -> None:
        """Releases the memory; no site is kept from now on."""
        with self._lock:
            self._empty(0)

    def copy_into(self, sites_B: NDArray[np.intp], out_BCHW: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Copies the pixels of the sites that are in memory to their rows; returns which sites those are, (B,)."""
        with self._lock:
            pixels, slot_B = self._pixels, self._slot_S[sites_B]
        found_B = slot_B >= 0
        if found_B.all():
            # Without `clip`, NumPy would copy twice, in case an index is out of range.
            np.take(pixels, slot_B, axis=0, out=out_BCHW, mode="clip")
        elif found_B.any():
            out_BCHW[found_B] = pixels[slot_B[found_B]]
        return found_B

    def keep(self, sites: NDArray[np.intp], pixels: Sequence[NDArray[np.uint8]]) -> None:
        """Copies sites into memory while there is room, except those that another thread is copying."""
        if self._used >= len(self._pixels):
            return
        with self._lock:
            new = [k for k, slot in enumerate(self._slot_S[sites]) if slot == _NONE][: len(self._pixels) - self._used]
            here, slots, slot_S = self._pixels, range(self._used, self._used + len(new)), self._slot_S
            slot_S[sites[new]] = _COMING
            self._used += len(new)
        for k, slot in zip(new, slots, strict=True):
            np.copyto(here[slot], pixels[k])
        # Only now readers see them; after a release in between, nothing refers to these arrays.
        with self._lock:
            slot_S[sites[new]] = slots


T = TypeVar("T")
_LOOK_S = 0.5
"""Seconds between checks of an idle thread whether the program is ending, which would wait for it forever."""


class Workers(Generic[T]):
    """Calls a function on each task, in order, in threads that start as tasks come and can be stopped at once.

    The standard library's executor costs more per task.

    Args:
        work: the function; it must not raise.
        most: largest number of threads.
        name: name of the threads.
    """

    def __init__(self, work: Callable[[T], None], most: int, name: str) -> None:
        self._work = work
        self._most = most
        self._name = name
        self._tasks: SimpleQueue[T | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, task: T) -> None:
        """Appends a task to the queue."""
        self._tasks.put(task)
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run, name=f"{self._name} {len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Drops queued tasks, and returns when every thread has finished its current one."""
        with contextlib.suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=_LOOK_S)
            except Empty:
                if threading.main_thread().is_alive():
                    continue
                return
            if task is None:
                return
            self._work(task)
            del task  # else its batch would live until the next task


_TASK_BYTES = 2**20
"""Bytes of sites that a thread takes at once: one site of 512 pixels, or 75 of 48."""


class SiteSource(Protocol):
    """Decodes sites by their row in the site table."""

    def read_into(self, sites: NDArray[np.intp], out: Sequence[NDArray[np.uint8]]) -> None:
        """Decodes each of some different sites into its array of shape (C, H, W); called from several threads."""


class SiteCache:
    """Batches of sites. Sites in memory are copied; the others are fetched, and kept if there is room.

    Memory: the limit for decoded sites; `ahead + 2` batches (the consumer's, the next, and those ahead of it), reused in the
    next epoch; and one packed site per thread in the source.

    Args:
        source: reads and decodes sites.
        table: the sites of the screen.
        shape: (C, H, W) of a site.
        limit_bytes: largest memory for decoded sites.
        threads: sites fetched concurrently.
        ahead: batches read ahead of the next one.
        pinned: whether batches are in page-locked memory, for a CUDA device.

    Attributes:
        waited: seconds that the consumer has waited for batches so far.
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
        self._batch_memory = BatchMemory()
        self._threads = threads
        self._ahead = ahead
        self._pinned = pinned
        self._per_task = max(1, _TASK_BYTES // int(np.prod(shape)))

    def release(self) -> None:
        """Releases the memory of decoded sites; from now on every site is fetched."""
        self._memory.release()
        self._batch_memory.clear()

    def read(self, sites: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Pixels of the sites in the given order, shape (B, C, H, W); read by the calling thread."""
        batch = _Batch(sites, self._allocate(len(sites)), self._per_task)
        for part in batch.parts:
            self._read((batch, part))
        return batch.wait().numpy()

    def batches(self, orders: Iterable[NDArray[np.intp]]) -> Iterator[Tensor]:
        """uint8 tensors of the site batches, in order. The reading threads end with the iterator."""
        workers = Workers(self._read, self._threads, "loader")
        try:
            waiting: deque[_Batch] = deque()
            for sites in orders:
                batch = _Batch(sites, self._allocate(len(sites)), self._per_task)
                for part in batch.parts:
                    workers.submit((batch, part))
                waiting.append(batch)
                if len(waiting) > self._ahead:
                    yield self._wait_for(waiting.popleft())
            while waiting:
                yield self._wait_for(waiting.popleft())
        finally:
            workers.close()

    def _allocate(self, count: int) -> Tensor:
        """Memory for a batch."""
        if self._pinned:
            return torch.empty((count, *self._shape), dtype=torch.uint8, pin_memory=True)
        return self._batch_memory.take((count, *self._shape))

    def _wait_for(self, batch: _Batch) -> Tensor:
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
                rows = [out_BCHW[k] for k in missing]
                self._source.read_into(sites[missing], rows)
                self._memory.keep(sites[missing], rows)
        except BaseException as error:  # the consumer raises it
            batch.finished(part, error)
        else:
            batch.finished(part, None)


class _Batch:
    """A batch that threads fill part by part. A site that occurs twice is read once and copied."""

    def __init__(self, sites: NDArray[np.intp], memory: Tensor, per_task: int) -> None:
        self._whole = memory
        self._lock = threading.Lock()
        self._complete = threading.Event()
        self._errors: dict[int, BaseException] = {}
        different, self._where = np.unique(sites, return_inverse=True)
        self._repeats = len(different) < len(sites)
        if self._repeats:
            sites, memory = different, memory[: len(different)]
        self.sites = sites
        self.pixels: NDArray[np.uint8] = memory.numpy()
        self.parts = [slice(k, k + per_task) for k in range(0, len(sites), per_task)]
        self._left = len(self.parts)
        if not self.parts:
            self._complete.set()

    def finished(self, part: slice, error: BaseException | None) -> None:
        """Called by the thread that has filled a part, or failed to."""
        with self._lock:
            if error is not None:
                self._errors[part.start] = error
            self._left -= 1
            if self._left == 0:
                self._complete.set()

    def wait(self) -> Tensor:
        """Waits for all parts and returns the pixels; raises the error of the first part that has one."""
        self._complete.wait()
        if self._errors:
            raise self._errors[min(self._errors)]
        if self._repeats:
            self._whole.copy_(torch.from_numpy(self.pixels[self._where]))
        return self._whole
