"""Memory for batches on the host, and copies from the host to the training device that do not wait. NumPy and torch."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def room(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """An uninitialised tensor on the CPU, of huge pages where it is large.

    NumPy asks the kernel for them, torch does not by default: of a first pass over a fresh batch, half of the time is page faults.

    Args:
        shape: (B, C, H, W) where channels are last, else any.
        dtype: of the elements.
        channels_last: the memory format.
    """
    flat = torch.from_numpy(np.empty(math.prod(shape), dtype=str(dtype).removeprefix("torch.")))
    if not channels_last:
        return flat.view(shape)
    b, c, h, w = shape
    return flat.view(b, h, w, c).permute(0, 3, 1, 2)


class Rooms:
    """Memory of uint8 batches that is used again as soon as nothing refers to the batch that was in it. Safe in threads.

    Fresh memory costs a quarter of what it costs to read and decode a site into it. There is never more of it than batches
    were alive at once.
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
        # The tensor, its views and arrays of it keep this view alive; with the last of them it goes.
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view)

    def clear(self) -> None:
        """Gives back what is not in use."""
        self._free.clear()


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host, on the device; one that is there already is returned as it is."""
    if device.type != "cuda" or host.device.type == "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


class Upload:
    """Copies batches on a stream of their own, so that a batch crosses while the device computes on the one before.

    Args:
        device: where batches go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, host: Tensor) -> Tensor:
        """The batch on the device, safe to use in the current stream; pinned memory is not waited for."""
        if self._stream is None:
            return host.to(self._device)
        with torch.cuda.stream(self._stream):
            there = host.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        there.record_stream(current)  # its memory is of the other stream, which must not reuse it too early
        return there
