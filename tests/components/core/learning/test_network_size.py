"""Sizes counted on the meta device against published counts and real networks."""

from __future__ import annotations

import torch

from components.core.config import RunConfig
from components.core.learning.network import build_backbone
from components.core.learning.network_size import measure_size


def test_published_networks():
    first, second = RunConfig.load("rxrx1").backbones
    sizes = [measure_size(backbone, 512) for backbone in (first, second)]
    # 24.48 and 53.55 GMAC with the head's 2048 x 1139.
    assert [round((size.macs + 2048 * 1139) / 1e9, 2) for size in sizes] == [24.48, 53.55]
    # The reference's 23,148,168 and 38,122,880 parameters count a bias-free head of 1,139 classes.
    assert [size.parameters + 2048 * 1139 for size in sizes] == [23_140_776 + 7392, 38_122_880]


def test_parameters_and_activations_of_a_real_network():
    backbone = RunConfig.load("demo").backbones[0]
    size = measure_size(backbone, 64)
    network, embedding = build_backbone(backbone, 6, 64)
    assert (size.parameters, size.embedding) == (sum(p.numel() for p in network.parameters()), embedding)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, 6, 64, 64))
    weights = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    real = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)
    assert abs(2 * size.activation_bytes / real - 1) < 0.05
