"""What a network costs, against torch's own counts of the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from components.core.config import XCEPTION, XCEPTION_LARGE, BackboneConfig, HeadConfig, RunConfig
from components.core.errors import InputError
from components.core.learning.network import Classifier
from components.core.learning.weight_files import save_weights
from components.core.learning.xception import Xception
from pipelines.plan.network_cost import network_cost
from tests.components.core.learning.tiny_networks import SLIM, SMALL

CLASSES = 50
FLAT = BackboneConfig(name="flat", stem=4, entry=(6,), middle_blocks=2, exit=(8, 12, 16))
DEMO = RunConfig.load("demo").backbones[0]


@pytest.mark.parametrize(
    ("backbone", "size"),
    [(XCEPTION, 512), (XCEPTION_LARGE, 512), (XCEPTION, 299), (SMALL, 64), (SLIM, 33), (FLAT, 48), (DEMO, 64)],
    ids=lambda value: getattr(value, "name", value),
)
def test_forward_pass_and_parameters_are_those_that_torch_counts(backbone: BackboneConfig, size: int):
    with torch.device("meta"):
        network, image = Xception(backbone), torch.empty(1, 6, size, size)
    with FlopCounterMode(display=False) as counted:
        network(image)
    cost = network_cost(backbone, size, CLASSES)
    head = network.embedding_size * CLASSES
    assert cost.forward_macs == counted.get_total_flops() // 2 + head
    assert cost.parameters == sum(p.numel() for p in network.parameters()) + head
    assert cost.embedding == network.embedding_size


def test_a_backward_pass_costs_two_forward_passes_but_for_the_images_own_gradient():
    # torch counts the weight gradients of depthwise convolutions as if they were dense, so only the stem is compared.
    cost = network_cost(XCEPTION, 64, CLASSES)
    stem = cost.layers[0]
    network, image = torch.nn.Conv2d(6, XCEPTION.stem, 7, stride=2, padding=3, bias=False), torch.empty(1, 6, 64, 64)
    with FlopCounterMode(display=False) as counted:
        network(image).sum().backward()
    assert counted.get_total_flops() // 2 == 2 * stem.macs
    assert cost.train_macs == 3 * cost.forward_macs - stem.macs


@pytest.mark.parametrize("backbone", [SMALL, SLIM, DEMO], ids=lambda b: b.name)
def test_activations_that_training_keeps_are_nearly_those_that_autograd_saves(backbone: BackboneConfig):
    network, images = Classifier(backbone, HeadConfig(), CLASSES), torch.randn(4, 6, 64, 64)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images, torch.zeros(4, dtype=torch.long)).sum()
    saved = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights) / len(images)
    assert network_cost(backbone, 64, CLASSES).activation_bytes(4) == pytest.approx(saved, rel=0.1)


def test_weights_take_the_bytes_of_their_file(tmp_path: Path):
    save_weights(Classifier(DEMO, HeadConfig(), CLASSES), tmp_path / "weights.safetensors")
    size = (tmp_path / "weights.safetensors").stat().st_size
    assert network_cost(DEMO, 64, CLASSES).weight_bytes == pytest.approx(size, rel=0.03)


def test_arithmetic_grows_with_the_pixels():
    small, large = (network_cost(XCEPTION, size, CLASSES).forward_macs for size in (256, 512))
    assert large / small == pytest.approx(4, rel=0.03)


def test_a_network_whose_layers_are_not_known_is_named():
    resnet = BackboneConfig(name="resnet", kind="timm", model="resnet50")
    with pytest.raises(InputError, match=r"backbones\.resnet: .*networks in a file for --throughput"):
        network_cost(resnet, 224, CLASSES)


def test_an_image_too_small_for_the_strides_is_named():
    with pytest.raises(InputError, match=r"screen\.image_size 2: too small"):
        network_cost(XCEPTION, 2, CLASSES)
