import pytest
import torch

from components.core.config import BackboneConfig, HeadConfig
from components.core.errors import InputError
from components.core.learning.network import Classifier
from tests.components.core.learning.tiny_networks import SMALL, classifier, same, weights_of


# mobilenetv3 widens its features after pooling, so that its embedding is not what timm calls num_features.
@pytest.mark.parametrize("model", ["resnet10t", "mobilenetv3_small_050", "test_convnext"])
def test_a_timm_model_reads_six_channels(model):
    torch.manual_seed(0)
    network = Classifier(BackboneConfig(name="other", kind="timm", model=model), HeadConfig(), classes=5)
    x = torch.randn(2, 6, 64, 64)
    logits_BK = network.eval()(x)
    assert logits_BK.shape == (2, 5)
    for channel in range(6):
        changed = x.clone()
        changed[:, channel] += 1.0
        assert not torch.equal(network(changed), logits_BK), f"channel {channel} is not read"


# Vision transformers are built for one image size, convolutional networks are not; both must embed the screen's.
@pytest.mark.parametrize(("model", "width"), [("test_vit_relpos", 96), ("test_coatnet", 128), ("resnet10t", 512)])
@pytest.mark.parametrize("size", [64, 96])
def test_a_timm_model_takes_the_screens_image_size(model, width, size):
    torch.manual_seed(0)
    config = BackboneConfig(name="other", kind="timm", model=model)
    network = Classifier(config, HeadConfig(), classes=5, image_size=size)
    assert network.embedding_size == width
    x = torch.randn(2, 6, size, size)
    assert network.backbone(x).shape == (2, width)
    network(x, torch.tensor([0, 4])).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_timm_model_that_cannot_take_the_image_size_is_an_error_that_names_both():
    config = BackboneConfig(name="other", kind="timm", model="test_vit")
    with pytest.raises(InputError, match=r"^backbones\.other\.model: test_vit cannot take images of 50 x 50") as caught:
        Classifier(config, HeadConfig(), classes=5, image_size=50)
    assert "\n" not in str(caught.value)


def test_an_unknown_timm_model_is_an_error_that_names_the_field():
    with pytest.raises(InputError, match=r"^backbones\.other\.model: .*resnet_of_atlantis") as caught:
        Classifier(BackboneConfig(name="other", kind="timm", model="resnet_of_atlantis"), HeadConfig(), classes=5)
    assert "\n" not in str(caught.value)


def test_a_new_head_leaves_the_backbone_alone():
    network = classifier(5, scale=20.0, margin=0.2)
    before = weights_of(network)
    network.reset_head()
    after = weights_of(network)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.weight"]
    assert before["head.weight"].shape == after["head.weight"].shape
    assert (network.head.scale, network.head.margin) == (20.0, 0.2)


def test_the_seed_decides_the_weights():
    assert same(weights_of(classifier(5, seed=1)), weights_of(classifier(5, seed=1)))
    assert not same(weights_of(classifier(5, seed=1)), weights_of(classifier(5, seed=2)))


def test_targets_reach_the_head():
    network = classifier(4).eval()
    x, target_B = torch.randn(3, 6, 16, 16), torch.tensor([0, 1, 3])
    embedding_BE = network.backbone(x)
    assert embedding_BE.shape == (3, SMALL.exit[-1])
    torch.testing.assert_close(network(x, target_B), network.head(embedding_BE, target_B))
    assert not torch.equal(network(x, target_B), network(x))
