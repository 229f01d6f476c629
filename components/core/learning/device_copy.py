"""From the host to the training device without waiting for it. torch only.

On a CUDA device, a copy from ordinary memory makes the host wait for all the work it has given the device. From pinned
memory it does not, and torch's allocator of pinned memory hands a block out again only after the copies from it have ended
(it records an event with each), so that a buffer may be dropped as soon as its copy is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
