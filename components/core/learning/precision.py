"""What arithmetic a step's networks use, and how they are made fast for it. torch only."""

from __future__ import annotations

from typing import Literal

import torch

from components.core.config import ComputeConfig
from components.core.errors import InputError
from components.core.learning.network import Classifier

Precision = Literal["float32", "bfloat16"]


def precision_of(compute: ComputeConfig, device: torch.device) -> Precision:
    """The arithmetic of the backbones: as configured, or bfloat16 where a GPU computes in it by itself.

    bfloat16 has float32's range, so that gradients need no scaling (Kalamkar et al. 2019, arXiv 1905.12322).
    """
    if compute.precision != "auto":
        return compute.precision
    return (
        "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    )


def arithmetic(compute: ComputeConfig, device: torch.device, processes: int) -> str:
    """What decides a result's digits beside settings, data and code, as text for a key."""
    compiled = ", compiled" if compute.compile else ""
    return (
        f"{device.type} {precision_of(compute, device)}, {processes} processes of {compute.accumulate} parts{compiled}"
    )


def prepare(network: Classifier, compute: ComputeConfig, device: torch.device) -> None:
    """Memory format, arithmetic and, where wanted, compilation of a network on its device, in place.

    Raises:
        InputError: compilation is asked for and cannot be had here.
    """
    network.to(memory_format=torch.channels_last)
    network.autocasts = precision_of(compute, device) == "bfloat16"
    if device.type == "cuda":
        # A killed step must end as an undisturbed one, so convolutions add up in one order; and float32 is float32.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
    if compute.compile:
        if device.type != "cuda":
            raise InputError("compute.compile: there is no GPU here; set it to false")
        network.backbone.compile()
