"""Networks and their sizes: channels and image sizes, precision, published counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from components.core.config import BackboneConfig, ComputeConfig, HeadConfig, RunConfig
from components.core.errors import InputError
from components.core.learning.batch_norm import adapted
from components.core.learning.device import uses_bfloat16
from components.core.learning.network import Classifier, build_backbone, prepare
from components.core.learning.network_size import measure_size
from components.core.learning.xception import Xception
from tests.components.core.learning.tiny_networks import CPU, SMALL, classifier


# Vision transformers are built for one image size, convolutional networks are not; both must embed the screen's.
@pytest.mark.parametrize(
    ("model", "width", "size"), [("test_vit_relpos", 96, 64), ("test_coatnet", 128, 96), ("test_resnet", 96, 96)]
)
def test_a_timm_model_takes_the_screens_channels_and_image_size(model, width, size):
    torch.manual_seed(0)
    config = BackboneConfig(name="other", kind="timm", model=model)
    network = Classifier(config, HeadConfig(), classes=5, image_size=size)
    assert network.embedding_size == width
    x = torch.randn(2, 6, size, size)
    network(x, torch.tensor([0, 4])).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    logits_BK = network.eval()(x)
    assert logits_BK.shape == (2, 5)
    for channel in range(6):
        changed = x.clone()
        changed[:, channel] += 1.0
        assert not torch.equal(network(changed), logits_BK), f"channel {channel} is not read"


def test_a_plain_network_is_its_stages_with_pooling_in_between():
    torch.manual_seed(0)
    config = BackboneConfig(name="p", kind="plain", stages=((4, 6), (8,), (10, 12)))
    network, embedding = build_backbone(config, 5, 32)
    assert embedding == 12
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    x = torch.randn(3, 5, 32, 40)
    network(x).square().sum().backward()
    assert seen == [(4, 32, 40), (6, 32, 40), (8, 16, 20), (10, 8, 10), (12, 8, 10)]
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    last = next(m for m in reversed(list(network.modules())) if isinstance(m, nn.ReLU))
    last.register_forward_hook(lambda _m, _i, out: seen.append(out.mean((2, 3))))
    torch.testing.assert_close(network(x), seen[-1])


def test_images_too_small_for_the_stages_are_an_error():
    config = BackboneConfig(name="p", kind="plain", stages=((4,), (4,), (4,), (4,)))
    with pytest.raises(InputError, match=r"7 x 7 pixels .* too small for the strides of backbone p"):
        measure_size(config, 6, 7)
    with pytest.raises(InputError, match=r"7 x 7 pixels .* too small .* backbone p, from 8 x 8 on"):
        Classifier(config, HeadConfig(), classes=5, image_size=7)
    assert measure_size(config, 6, 8).embedding == 4


@pytest.mark.parametrize(
    ("model", "message"),
    [("test_vit", "test_vit cannot take images of 50 x 50"), ("resnet_of_atlantis", ".*resnet_of_atlantis")],
)
def test_rejects_an_unsuitable_or_unknown_timm_model(model, message):
    config = BackboneConfig(name="other", kind="timm", model=model)
    with pytest.raises(InputError, match=rf"^backbones\.other\.model: {message}") as caught:
        Classifier(config, HeadConfig(), classes=5, image_size=50)
    assert "\n" not in str(caught.value)


GPU = torch.device("cuda")


def test_auto_precision_is_bfloat16_only_on_gpus_that_support_it(monkeypatch):
    auto = ComputeConfig()
    assert not uses_bfloat16(auto, CPU)
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=supported: has)
        assert uses_bfloat16(auto, GPU) == supported
    assert uses_bfloat16(ComputeConfig(precision="bfloat16"), CPU)
    assert not uses_bfloat16(ComputeConfig(precision="float32"), GPU)


@pytest.mark.parametrize("head", ["arcface", "softmax"])
def test_the_backbone_computes_in_bfloat16_and_the_head_in_float32(head):
    network = classifier(5, kind=head).eval()
    x, target_B = torch.randn(3, 6, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 4, 1])
    seen: dict[str, torch.dtype] = {}
    convolution = next(module for module in network.backbone.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda _module, _inputs, out: seen.update(convolution=out.dtype))
    network.head.register_forward_pre_hook(lambda _module, inputs: seen.update(head=inputs[0].dtype))
    prepare(network, ComputeConfig(), CPU)
    with torch.no_grad():
        exact_BK = network(x, target_B)
        prepare(network, ComputeConfig(precision="bfloat16"), CPU)
        rough_BK = network(x, target_B)
        assert seen == {"convolution": torch.bfloat16, "head": torch.float32}
        assert rough_BK.dtype == torch.float32
        assert 0 < float((rough_BK - exact_BK).abs().max()) < 0.1 * float(exact_BK.abs().max())
        prepare(network, ComputeConfig(), CPU)
        assert torch.equal(network(x, target_B), exact_BK)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_batch_norm_before_the_head_normalises_embeddings_in_training_and_by_domain():
    config = HeadConfig(batch_norm=True)
    network = Classifier(BackboneConfig(name="p", kind="plain", stages=((4,), (8,))), config, classes=3, channels=2)
    x_BCHW = torch.randn(64, 2, 8, 8) * 5 + 3
    embedding_BE = network.train().embed(x_BCHW)
    torch.testing.assert_close(embedding_BE.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(embedding_BE.var(0, unbiased=False), torch.ones(8), atol=1e-2, rtol=0)
    torch.testing.assert_close(network.head(embedding_BE), network.train()(x_BCHW))
    with adapted(network, [(x_BCHW,)]), torch.no_grad():
        torch.testing.assert_close(network.embed(x_BCHW), embedding_BE, atol=1e-2, rtol=1e-2)


def test_the_neck_takes_the_cell_type_as_published():
    """Against plain arithmetic, and in batches of one cell type, too, where BatchNorm must not remove it."""
    config = HeadConfig(cell_types=True)
    backbone = BackboneConfig(name="p", kind="plain", stages=((4,), (8,)))
    network = Classifier(backbone, config, classes=3, channels=2, cell_types=3).train()
    x_BCHW, type_BT = torch.randn(32, 2, 8, 8), torch.eye(3)[torch.arange(32) % 3]

    def normalised(x_BE):
        return (x_BE - x_BE.mean(0)) / torch.sqrt(x_BE.var(0, unbiased=False) + 1e-5)

    joined = torch.cat([normalised(network.backbone(x_BCHW)), type_BT], 1) @ network.neck.join.weight.T
    expected_BE = normalised(normalised(joined.relu()) @ network.neck.rest[2].weight.T)
    torch.testing.assert_close(network.embed(x_BCHW, type_BT), expected_BE, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(x_BCHW, None, type_BT), network.head(expected_BE), atol=1e-4, rtol=1e-4)
    first, second = (network.embed(x_BCHW, torch.eye(3)[[k] * 32]) for k in (0, 1))
    assert (first - second).abs().mean() > 0.05


def test_compiling_needs_a_gpu():
    with pytest.raises(InputError, match=r"compute\.compile: there is no GPU here"):
        prepare(classifier(3), ComputeConfig(compile=True), CPU)


def test_no_relu_after_the_last_batch_norm():
    torch.manual_seed(0)
    network = Xception(SMALL)
    assert isinstance(network.exit[-1], nn.BatchNorm2d)
    seen = []
    network.exit.register_forward_hook(lambda _m, _i, out: seen.append(out))
    embedding_BE = network(torch.randn(8, 6, 32, 32))
    assert (seen[0] < 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert (embedding_BE < 0).any()
    torch.testing.assert_close(embedding_BE, seen[0].flatten(2).mean(2))


@pytest.mark.parametrize("kind", ["fan_out", "torch"])
def test_depthwise_convolutions_may_start_as_torchs(kind):
    """By all 9 x 32 outputs the deviation is sqrt(2 / 288); torch's default is uniform up to 1/3."""
    torch.manual_seed(0)
    network = Xception(SMALL.model_copy(update={"entry": (32, 32), "middle_blocks": 8, "depthwise_init": kind}))
    convolutions = [module for module in network.middle.modules() if isinstance(module, nn.Conv2d)]
    depthwise, pointwise = (
        [c.weight.flatten() for c in convolutions if (c.groups > 1) == each] for each in (True, False)
    )
    expected = math.sqrt(2 / (9 * 32)) if kind == "fan_out" else 1 / math.sqrt(27)
    assert torch.cat(depthwise).std().item() == pytest.approx(expected, rel=0.03)
    assert torch.cat(pointwise).std().item() == pytest.approx(math.sqrt(2 / 32), rel=0.03)


def test_sizes_of_published_networks():
    """Counted on the meta device."""
    first, second = RunConfig.load("rxrx1").backbones
    sizes = [measure_size(backbone, 6, 512) for backbone in (first, second)]
    # 24.48 and 53.55 GMAC with the head's 2048 x 1139.
    assert [round((size.macs + 2048 * 1139) / 1e9, 2) for size in sizes] == [24.48, 53.55]
    # The reference's 23,148,168 and 38,122,880 parameters count a bias-free head of 1,139 classes.
    assert [size.parameters + 2048 * 1139 for size in sizes] == [23_140_776 + 7392, 38_122_880]


def test_parameters_and_activations_of_a_real_network():
    backbone = RunConfig.load("demo").backbones[0]
    size = measure_size(backbone, 6, 64)
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


@pytest.mark.gpu
def test_a_compiled_network_agrees_with_the_plain_one():
    x = torch.randn(4, 6, 64, 64, device=GPU)
    plain, compiled = classifier(3).to(GPU).eval(), classifier(3).to(GPU).eval()
    prepare(plain, ComputeConfig(precision="float32"), GPU)
    prepare(compiled, ComputeConfig(precision="float32", compile=True), GPU)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x), atol=1e-3, rtol=1e-3)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
