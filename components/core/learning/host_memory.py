"""Memory for batches on the host. NumPy and torch."""

from __future__ import annotations

import math

import numpy as np
import torch
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
