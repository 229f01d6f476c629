from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from components.core.config import XCEPTION, BackboneConfig
from components.core.errors import InputError
from components.core.learning.initial_weights import copy_pretrained, load_initial_weights
from components.core.learning.network import Classifier
from components.core.learning.weight_files import read_tensors, save_weights
from components.core.learning.xception import Xception
from tests.components.core.learning.tiny_networks import PRETRAIN, SLIM, SMALL, classifier, same, weights_of

RESNET = BackboneConfig(name="other", kind="timm", model="test_resnet")
PLAIN = BackboneConfig(name="plain", kind="plain", stages=((4, 4), (6,)))


def saved(tensors, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))
    else:
        torch.save(tensors, path)
    return path


def backbone(seed: int = 0, config: BackboneConfig = SMALL, channels: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return Classifier(config, PRETRAIN.head, 5, channels, image_size=64).backbone


WRAPPERS = (
    "",
    "module.",
    "model.",
    "encoder.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.encoder.",
)


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loads_a_file_with_the_networks_own_names(tmp_path, suffix, prefix):
    source, target = backbone(1), backbone(2)
    path = saved({f"{prefix}{name}": value for name, value in weights_of(source).items()}, tmp_path / f"w{suffix}")
    found = load_initial_weights(target, SMALL, path, 6)
    assert same(weights_of(target), weights_of(source))
    assert (found.adapted, found.new, found.unused, found.expected) == ((), (), (), True)


def test_finds_the_network_among_others(tmp_path):
    """Self-supervised training saves its projection too, and compiles parts."""
    source, target = backbone(1), backbone(2)
    own = {f"model.encoder.{n.replace('exit.', 'exit._orig_mod.')}": value for n, value in weights_of(source).items()}
    path = saved(
        {**own, "model.projector.0.weight": torch.ones(2, 2), "model.fc.bias": torch.ones(3)}, tmp_path / "w.pt"
    )
    found = load_initial_weights(target, SMALL, path, 6)
    assert same(weights_of(target), weights_of(source))
    assert found.unused == ("projector.0.weight",)


def test_two_networks_in_a_file_are_not_mixed(tmp_path):
    other = {f"encoder.{name}": value for name, value in weights_of(backbone(2)).items()}
    path = saved({**other, **{f"model.{n}": value for n, value in weights_of(backbone(1)).items()}}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: both encoder\.(\S+) and model\.\1 may be tensor \1"):
        load_initial_weights(backbone(), SMALL, path, 6)


VIT = BackboneConfig(name="vit", kind="timm", model="test_vit")


def test_a_vision_transformer_of_another_size_is_resampled(tmp_path):
    """Position embeddings as timm resamples them; all else as it is, but for the channels."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", img_size=160)
    target = backbone(2, VIT)
    path = saved({f"module.{name}": value for name, value in weights_of(theirs).items()}, tmp_path / "w.safetensors")
    found = load_initial_weights(target, VIT, path, 6, 64)
    own, expected = weights_of(target), weights_of(theirs)
    positions = timm.layers.resample_abs_pos_embed(expected.pop("pos_embed"), [4, 4], num_prefix_tokens=1)
    assert torch.equal(own.pop("pos_embed"), positions)
    assert torch.equal(
        own.pop("patch_embed.proj.weight"), expected.pop("patch_embed.proj.weight").repeat(1, 2, 1, 1) / 2
    )
    assert same(own, {name: value for name, value in expected.items() if not name.startswith("head.")})
    assert (found.resampled, found.new, found.expected) == (("pos_embed",), (), True)
    assert "resampled to its image size: pos_embed" in found.sentence("vit", "w.pt")


def test_weights_for_another_size_that_cannot_be_resampled_name_the_size(tmp_path):
    config = BackboneConfig(name="cait", kind="timm", model="cait_xxs24_224")
    positions = saved({"pos_embed": torch.zeros(1, 196, 192)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"pos_embed has shape \(1, 196, 192\), but .* for images of 64 x 64 pixels"):
        load_initial_weights(backbone(0, config), config, positions, 6, 64)


def test_takes_the_backbone_but_not_the_classifier_of_pretrains_output(tmp_path):
    source, target = classifier(9, seed=1), classifier(5, seed=2)
    before = target.head.weight.detach().clone()
    save_weights(source, tmp_path / "weights.safetensors")
    found = load_initial_weights(target.backbone, SMALL, tmp_path / "weights.safetensors", 6)
    assert same(weights_of(target.backbone), weights_of(source.backbone))
    assert torch.equal(target.head.weight, before)
    assert (found.new, found.unused) == ((), ())


def test_imagenet_names_compute_what_timms_network_computes(tmp_path):
    """All features agree with timm's, so every tensor went to its place, and the stem is the same filter."""
    torch.manual_seed(0)
    theirs = timm.create_model("legacy_xception", num_classes=7)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales that tell layers apart
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.6, 1.4)
    torch.manual_seed(1)
    ours = Xception(XCEPTION)
    found = load_initial_weights(ours, XCEPTION, saved(theirs.state_dict(), tmp_path / "w.safetensors"), 6)
    assert (found.adapted, found.new, found.unused, found.expected) == (("stem.0.weight",), (), (), True)
    counters = sum(name.endswith("num_batches_tracked") for name in ours.state_dict())
    assert len(found.taken) >= len(ours.state_dict()) - counters
    ours, theirs = ours.eval(), theirs.eval()
    # Red, green and blue twice over: the same response. Their convolution has no padding, so ours starts a pixel earlier.
    x = torch.rand(2, 3, 33, 33)
    with torch.inference_mode():
        mine = ours.stem[:2](torch.nn.functional.pad(x, (1, 0, 1, 0)).repeat(1, 2, 1, 1))
        torch.testing.assert_close(mine[..., 1:, 1:], theirs.bn1(theirs.conv1(x)), rtol=1e-4, atol=1e-5)
    x = torch.rand(2, 32, 33, 33)
    with torch.inference_mode():
        mine = ours.exit(ours.middle(ours.entry(ours.stem[3:](x))))
        x = theirs.act2(theirs.bn2(theirs.conv2(x)))
        for number in range(1, 13):
            x = getattr(theirs, f"block{number}")(x)
        x = theirs.bn4(theirs.conv4(theirs.act3(theirs.bn3(theirs.conv3(x)))))
    assert mine.std() > 0.01
    torch.testing.assert_close(mine, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, PLAIN, RESNET], ids=["xception", "plain", "timm"])
def test_adapts_the_first_convolution_of_a_three_channel_network(tmp_path, config):
    source, target = backbone(1, config, channels=3), backbone(2, config)
    found = load_initial_weights(target, config, saved(weights_of(source), tmp_path / "w.pt"), 6)
    (name,) = found.adapted
    own, theirs = weights_of(target), weights_of(source)
    assert torch.equal(own.pop(name), theirs.pop(name).repeat(1, 2, 1, 1) / 2)
    assert same(own, theirs)
    assert (found.new, found.expected) == ((), True)
    assert "adapted to its channels: " + name in found.sentence("small", "w.pt")
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        six, three = target.eval()(grey.expand(-1, 6, -1, -1)), source.eval()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(six, three, rtol=1e-4, atol=1e-5)


BAD = {
    "other shape": (lambda: {**weights_of(backbone()), "entry.0.body.1.weight": torch.zeros(5)},
                    r"tensor entry\.0\.body\.1\.weight has shape \(5,\), but backbone small needs \(\d+,\)"),
    "not finite": (lambda: {**weights_of(backbone()), "exit.2.bias": torch.full((12,), torch.nan)},
                   r"tensor exit\.2\.bias has a value that is not finite"),
    "other network": (lambda: timm.create_model("test_resnet").state_dict(),
                      r"no tensor has a name of backbone small \(stem\.0\.weight, .*: give weights of the same"),
    "a whole module": (lambda: nn.Linear(2, 2), "not a file of plain tensors"),
    "numbers": (lambda: {"epoch": 3, "loss": 0.5}, "contains no state dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_rejects_a_file_of_another_architecture_and_changes_nothing(tmp_path, case):
    make, message = BAD[case]
    path = saved(make(), tmp_path / "w.pt")
    target = backbone(2)
    before = weights_of(target)
    with pytest.raises(InputError, match=message) as caught:
        load_initial_weights(target, SMALL, path, 6)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert same(before, weights_of(target))


def test_never_runs_code_in_a_file(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"stem.0.weight": Harmful()}, protocol=2))
    with pytest.raises(InputError, match=r"w\.pt: "):
        read_tensors(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "folder", "truncated"])
def test_a_damaged_file_is_one_line(tmp_path, name, damage):
    path = tmp_path / name
    if damage == "folder":
        path.mkdir()
    elif damage == "truncated":
        saved(weights_of(backbone()), path)
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "empty":
        path.touch()
    with pytest.raises(InputError, match=name.replace(".", r"\.") + ": ") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


THEN, NOW = ("a", "b", "c", "d"), ("d", "x", "b", "a", "y")


@pytest.mark.parametrize("kind", ["arcface", "softmax"])
def test_copies_the_whole_backbone_and_the_heads_rows_by_label_or_nothing(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(classifier(len(THEN), 1, SLIM, kind=kind), file)
    then, network = load_file(str(file)), classifier(len(NOW), 2, SLIM, kind=kind)
    before = weights_of(network)
    taken = copy_pretrained(network, file, THEN, NOW, "fold 0 of run old-1")
    after = weights_of(network)
    for name, tensor in after.items():
        if not name.startswith("head."):
            assert torch.equal(tensor, then[name])
            continue
        for k, label in enumerate(NOW):
            expected = then[name][THEN.index(label)] if label in THEN else before[name][k]
            assert torch.equal(tensor[k], expected)
    assert (taken.known, taken.new, taken.left_out) == (("d", "b", "a"), ("x", "y"), ("c",))
    with pytest.raises(InputError, match=r"weights of another architecture \("):
        copy_pretrained(network, file, THEN[:-1], NOW, "it")
    assert same(weights_of(network), after)
