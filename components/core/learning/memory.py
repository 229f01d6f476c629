"""Memory for batches on the host, and copies from the host to the training device that do not wait. NumPy and torch."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def empty_tensor(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """An uninitialised tensor on the CPU, in huge pages if it is large.

    NumPy requests huge pages, torch does not by default: half the time of a first pass over a new batch would be page faults.

    Args:
        shape: any shape; (B, C, H, W) with `channels_last`.
        dtype: type of the elements.
        channels_last: the memory format.
    """
    flat = torch.from_numpy(np.empty(math.prod(shape), dtype=str(dtype).removeprefix("torch.")))
    if not channels_last:
        return flat.view(shape)
    b, c, h, w = shape
    return flat.view(b, h, w, c).permute(0, 3, 1, 2)


class BatchMemory:
    """Memory of uint8 batches, reused as soon as nothing refers to the batch in it. Thread-safe.

    Allocating a site's memory costs a quarter of reading and decoding the site. There is never more memory than the
    largest number of batches alive at once.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, dtype=np.uint8)
        if memory.nbytes < size:
            memory = np.empty(size, dtype=np.uint8)
        view = memory[:size].reshape(shape)
        # The tensor and everything derived from it keep this view alive; when the last is gone, the memory is free again.
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view)

    def clear(self) -> None:
        """Releases memory that is not in use."""
        self._free.clear()


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor, copied from the host to the device without waiting; returned as it is if it is there already."""
    if device.type != "cuda" or host.device.type == "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class Upload:
    """Copies batches to a device on a separate stream, while the device computes on the previous batch.

    On a CUDA device, a copy from ordinary memory makes the host wait for all the work it has queued. A copy from pinned memory
    does not, and torch reuses a pinned block only after the copies from it have ended, so a buffer may be dropped at once.

    Args:
        device: the target.
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
