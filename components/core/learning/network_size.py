"""The size of a network: multiply-accumulates, parameters, activation memory. Counted by torch on the meta device.

`python -m components.core.learning.network_size` reads a run's configuration as JSON from standard input and writes the sizes
of its networks as JSON; `network_sizes` calls it, for callers that must not import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache

from components.core.command import run_command
from components.core.config import BackboneConfig, RunConfig
from components.core.errors import InputError


@dataclass(frozen=True)
class NetworkSize:
    """A backbone at one image size."""

    backbone: str
    macs: int  # multiply-accumulates of a forward pass of one site
    parameters: int  # trained numbers, without the head
    embedding: int  # E
    activation_bytes: int  # what training keeps of one site for the backward pass, in float32

    def weight_bytes(self, classes: int) -> int:
        """Bytes of the backbone's and the head's weights, float32."""
        return 4 * (self.parameters + self.embedding * classes)


def network_sizes(config: RunConfig) -> dict[str, NetworkSize]:
    """Sizes of the configured networks by name, counted in a process that loads torch.

    Raises:
        InputError: torch is not installed, or a timm model is unknown or cannot take the images.
    """
    return _sizes_in_a_process(
        config.model_dump_json(include={"backbones": True, "screen": {"channels", "image_size", "bin", "crop"}})
    )


@cache  # a plan by the rates of a run sizes the networks of both, which are often the same
def _sizes_in_a_process(config: str) -> dict[str, NetworkSize]:
    """Sizes of the networks of a configuration, JSON with `backbones` and the fields of `screen` that say what they see."""
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:  # counting makes torch create a folder
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=config,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise InputError(f"the networks cannot be sized: {last[0].removeprefix('error: ')}")
    return {each["backbone"]: NetworkSize(**each) for each in json.loads(done.stdout)}


def measure_size(backbone: BackboneConfig, channels: int, side: int) -> NetworkSize:
    """Builds a backbone without memory for its weights, and runs two sites through it.

    Raises:
        InputError: no such timm model, or images that the network cannot take.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from components.core.learning.network import build_backbone

    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # the tensor keeps the storage, and so the key, alive
        return tensor

    try:
        with torch.device("meta"):
            network, embedding = build_backbone(backbone, channels, side)
            sites = torch.zeros(2, channels, side, side)  # BatchNorm refuses a single value
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            network(sites)
    except RuntimeError as error:
        raise InputError(
            f"images of {side} x {side} pixels (screen.image_size, bin and crop) are too small for the strides of backbone "
            f"{backbone.name} ({error})"
        ) from None
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    activations = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights) // 2
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return NetworkSize(backbone.name, counter.get_total_flops() // 4, parameters, embedding, activations)


def main() -> None:
    """Reads a configuration, writes its networks' sizes."""
    config = RunConfig.model_validate_json(sys.stdin.read())
    try:
        seen = len(config.screen.channel_names), config.screen.input_side
        sizes = [asdict(measure_size(backbone, *seen)) for backbone in config.backbones]
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; install cellsignal[train]") from None
    print(json.dumps(sizes))  # noqa: T201


if __name__ == "__main__":
    run_command(main)
