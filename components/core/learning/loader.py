"""Packed sites to batches of uint8 or uint16: threads fetch and decode them straight into the batch, some batches ahead.

S sites of a screen, B sites of a batch, C channel, H and W pixels.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core.screen.packed import SiteReader
from components.core.screen.plane_header import Pixels

_TASK_BYTES = 2**20
"""Bytes of sites that a thread reads at once: one site of 512 pixels, or 75 of 48, of six 8-bit channels."""
_NONE, _COMING = -1, -2
_UINT8: np.dtype[Any] = np.dtype(np.uint8)


class BatchMemory:
    """Memory of batches, reused as soon as nothing refers to the batch in it. Thread-safe.

    Allocating a site's memory costs a quarter of reading and decoding the site.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        memory = self._free.pop() if self._free else np.empty(0, dtype=np.uint8)
        if memory.nbytes < size:
            memory = np.empty(size, dtype=np.uint8)
        view = memory[:size].view(dtype).reshape(shape)
        # The tensor and everything derived from it keep this view alive; when the last is gone, the memory is free again.
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view)

    def clear(self) -> None:
        """Releases memory that is not in use."""
        self._free.clear()


class DecodedSites:
    """Decoded sites in memory: the first ones that were read, up to a limit in bytes. Thread-safe.

    They are never replaced: an epoch reads every site about once, so replacing some by later ones would only cost copies.
    """

    def __init__(
        self, sites: int, shape: tuple[int, int, int], limit_bytes: float, dtype: np.dtype[Any] = _UINT8
    ) -> None:
        self._sites = sites
        self._shape, self._dtype = shape, dtype
        self._lock = threading.Lock()
        self._empty(int(min(sites, limit_bytes // (np.prod(shape) * dtype.itemsize))))

    def _empty(self, capacity: int) -> None:
        # Untouched pages of an allocation cost nothing, so memory grows with its use.
        self._pixels = np.empty((capacity, *self._shape), dtype=self._dtype)
        self._slot_S = np.full(self._sites, _NONE, dtype=np.intp)
        self._used = 0

    def release(self) -> None:
        """Releases the memory; no site is kept from now on."""
        with self._lock:
            self._empty(0)

    def copy_into(self, sites_B: NDArray[np.intp], out_BCHW: Pixels) -> NDArray[np.bool_]:
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

    def keep(self, sites: NDArray[np.intp], pixels: Sequence[Pixels]) -> None:
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


@dataclass(frozen=True)
class _Batch:
    """A batch that threads are filling."""

    pixels: Tensor
    row_B: NDArray[np.intp] | None  # if a site occurs twice, the row that each site was read into; else None
    parts: list[Future[None]]  # one for each thread's share


class SiteLoader:
    """Batches of sites. Sites in memory are copied; the others are fetched, and kept if there is room.

    Memory: the limit for decoded sites; `ahead + 3` batches (the consumer's, the next, those ahead of it, and one that a thread
    has just filled), reused in the next epoch; and one packed site per thread in the reader.

    Args:
        reader: fetches and decodes sites.
        sites: S.
        shape: (C, H, W) of a site.
        limit_bytes: largest memory for decoded sites.
        threads: sites fetched concurrently.
        ahead: batches read ahead of the next one.
        pinned: whether batches are in page-locked memory, for a CUDA device.
        dtype: of the pixels, uint8 or uint16.

    Attributes:
        waited: seconds that the consumer has waited for batches so far.
    """

    def __init__(
        self,
        reader: SiteReader,
        sites: int,
        shape: tuple[int, int, int],
        limit_bytes: float,
        threads: int = 8,
        ahead: int = 3,
        pinned: bool = False,
        dtype: np.dtype[Any] = _UINT8,
    ) -> None:
        self.waited = 0.0
        self._reader = reader
        self._shape, self._dtype = shape, dtype
        self._torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        self._decoded = DecodedSites(sites, shape, limit_bytes, dtype)
        self._batch_memory = BatchMemory()
        self._threads = threads
        self._ahead = ahead
        self._pinned = pinned
        self._per_task = max(1, _TASK_BYTES // (math.prod(shape) * dtype.itemsize))

    def release(self) -> None:
        """Releases the memory of decoded sites; from now on every site is fetched."""
        self._decoded.release()
        self._batch_memory.clear()

    def batches(self, orders: Iterable[NDArray[np.intp]]) -> Iterator[Tensor]:
        """Tensors of the site batches' pixels, in order. The reading threads end with the iterator.

        Raises:
            InputError: a site cannot be read; raised in place of its batch.
        """
        threads = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        try:
            waiting: deque[_Batch] = deque()
            for sites in orders:
                waiting.append(self._start(sites, threads))
                if len(waiting) > self._ahead:
                    yield self._finish(waiting.popleft())
            while waiting:
                yield self._finish(waiting.popleft())
        finally:
            threads.shutdown(cancel_futures=True)

    def _start(self, sites: NDArray[np.intp], threads: ThreadPoolExecutor) -> _Batch:
        """Starts to fill a batch. A site that occurs twice is read once."""
        shape = (len(sites), *self._shape)
        if self._pinned:
            memory = torch.empty(shape, dtype=self._torch_dtype, pin_memory=True)
        else:
            memory = self._batch_memory.take(shape, self._dtype)
        different, row_B = np.unique(sites, return_inverse=True)
        repeats = len(different) < len(sites)
        if repeats:
            sites = different
        out_BCHW = memory.numpy()
        shares = [slice(k, min(k + self._per_task, len(sites))) for k in range(0, len(sites), self._per_task)]
        parts = [threads.submit(self._read, sites[share], out_BCHW[share]) for share in shares]
        return _Batch(memory, row_B if repeats else None, parts)

    def _finish(self, batch: _Batch) -> Tensor:
        """Waits for a batch; raises the error of the first part that has one."""
        begun = time.perf_counter()
        try:
            for part in batch.parts:
                part.result()
        finally:
            self.waited += time.perf_counter() - begun
        if batch.row_B is not None:
            batch.pixels.copy_(batch.pixels[torch.from_numpy(batch.row_B)])
        return batch.pixels

    def _read(self, sites: NDArray[np.intp], out_BCHW: Pixels) -> None:
        missing = np.flatnonzero(~self._decoded.copy_into(sites, out_BCHW))
        if len(missing):
            rows = [out_BCHW[k] for k in missing]
            self._reader.read_into(sites[missing], rows)
            self._decoded.keep(sites[missing], rows)


class Upload:
    """Copies batches to a device on a separate stream, while the device computes on the previous batch.

    On a CUDA device, a copy from ordinary memory makes the host wait for all the work it has queued. A copy from pinned memory
    does not, and torch reuses a pinned block only after the copies from it have ended, so a buffer may be dropped at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, host: Tensor) -> Tensor:
        """The batch on the device, safe to use in the current stream; does not wait for pinned memory."""
        if self._stream is None:
            return host.to(self._device)
        with torch.cuda.stream(self._stream):
            copied = host.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        copied.record_stream(current)  # allocated on the other stream, which must not reuse the memory too early
        return copied
