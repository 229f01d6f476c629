"""bfloat16 where it is wanted and can be had, never in the head; what decides a result's digits is in its key."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.core.config import ComputeConfig
from components.core.errors import InputError
from components.core.learning.network import arithmetic, precision_of, prepare
from components.core.learning.supervised import SupervisedTraining
from tests.components.core.learning.test_supervised import CONFIG, NOBODY, toy  # noqa: F401 - a fixture
from tests.components.core.learning.tiny_networks import CPU, classifier, same, weights_of

GPU = torch.device("cuda")


def test_auto_is_bfloat16_on_gpus_that_have_it_alone(monkeypatch):
    auto = ComputeConfig()
    assert precision_of(auto, CPU) == "float32"
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert precision_of(auto, GPU) == expected
    assert precision_of(ComputeConfig(precision="bfloat16"), CPU) == "bfloat16"
    assert precision_of(ComputeConfig(precision="float32"), GPU) == "float32"


def test_the_key_knows_what_changes_digits_and_nothing_else():
    plain = arithmetic(ComputeConfig(), CPU, 1)
    for changed in ({"precision": "bfloat16"}, {"accumulate": 2}, {"compile": True}):
        assert arithmetic(ComputeConfig(**changed), CPU, 1) != plain
    assert arithmetic(ComputeConfig(), CPU, 2) != plain
    assert arithmetic(ComputeConfig(), GPU, 1) != arithmetic(ComputeConfig(precision="float32"), CPU, 1)
    for unchanged in ({"checkpoint_seconds": 1}, {"processes": 1}, {"precision": "float32"}):
        assert arithmetic(ComputeConfig(**unchanged), CPU, 1) == plain


@pytest.mark.parametrize("head", ["arcface", "softmax"])
def test_the_backbone_computes_in_bfloat16_and_the_head_in_float32(head):
    network = classifier(5, kind=head).eval()
    x = torch.randn(3, 6, 32, 32, generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.dtype] = {}
    convolution = next(module for module in network.backbone.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda _module, _inputs, out: seen.update(convolution=out.dtype))
    network.head.register_forward_pre_hook(lambda _module, inputs: seen.update(head=inputs[0].dtype))
    prepare(network, ComputeConfig(), CPU)
    with torch.no_grad():
        exact_BK = network(x)
        prepare(network, ComputeConfig(precision="bfloat16"), CPU)
        rough_BK = network(x)
        assert seen == {"convolution": torch.bfloat16, "head": torch.float32}
        assert rough_BK.dtype == torch.float32
        assert 0 < float((rough_BK - exact_BK).abs().max()) < 0.1 * float(exact_BK.abs().max())
        prepare(network, ComputeConfig(), CPU)
        assert torch.equal(network(x), exact_BK)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_training_in_bfloat16_learns_too(toy):  # noqa: F811
    config = CONFIG.model_copy(update={"epochs": 6})
    weights = []
    for precision in ("float32", "bfloat16"):
        network = classifier(3)
        compute = ComputeConfig(precision=precision)
        wells = torch.arange(toy.table.wells).numpy()
        training = SupervisedTraining(network, toy, wells, NOBODY, config, 1, compute)
        training.run()
        history = training.history
        assert history[-1]["loss"] < 0.7 * history[0]["loss"]
        weights.append(weights_of(network))
    assert not same(*weights)


def test_compiling_needs_a_gpu():
    with pytest.raises(InputError, match=r"compute\.compile: there is no GPU here"):
        prepare(classifier(3), ComputeConfig(compile=True), CPU)


@pytest.mark.gpu
def test_a_compiled_network_agrees_with_the_plain_one():
    x = torch.randn(4, 6, 64, 64, device=GPU)
    plain, compiled = classifier(3).to(GPU).eval(), classifier(3).to(GPU).eval()
    prepare(plain, ComputeConfig(precision="float32"), GPU)
    prepare(compiled, ComputeConfig(precision="float32", compile=True), GPU)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x), atol=1e-3, rtol=1e-3)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
