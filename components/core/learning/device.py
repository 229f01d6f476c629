"""The training device: which one, its arithmetic, and tensors for it. torch only."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from components.core.config import ComputeConfig


def pick_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def uses_bfloat16(compute: ComputeConfig, device: torch.device) -> bool:
    """Whether backbones compute in bfloat16: as configured, or for `auto` on a GPU that supports it natively.

    bfloat16 has float32's range, so gradients need no scaling (Kalamkar et al. 2019, arXiv 1905.12322).
    """
    if compute.precision != "auto":
        return compute.precision == "bfloat16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def arithmetic(compute: ComputeConfig, device: torch.device, processes: int) -> str:
    """What affects a result's digits in addition to settings, data and code, as text for a work key."""
    precision = "bfloat16" if uses_bfloat16(compute, device) else "float32"
    compiled = ", compiled" if compute.compile else ""
    return f"{device.type} {precision}, {processes} processes of {compute.accumulate} parts{compiled}"


def empty_tensor(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """An uninitialised tensor on the CPU, in huge pages if it is large; its shape is (B, C, H, W) with `channels_last`.

    NumPy requests huge pages, torch does not by default: half the time of a first pass over a new batch would be page faults.
    """
    flat = torch.from_numpy(np.empty(math.prod(shape), dtype=str(dtype).removeprefix("torch.")))
    if not channels_last:
        return flat.view(shape)
    b, c, h, w = shape
    return flat.view(b, h, w, c).permute(0, 3, 1, 2)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor, copied from the host to the device without waiting; returned as it is if it is there already."""
    if device.type != "cuda" or host.device.type == "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
