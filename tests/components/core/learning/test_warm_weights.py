"""An earlier run's weights in a network of another screen: every number where it belongs, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.core.errors import InputError
from components.core.learning.initial_weights import copy_pretrained
from components.core.learning.weight_files import save_weights
from tests.components.core.learning.tiny_networks import SLIM, SMALL, classifier, same, weights_of

THEN, NOW = ("a", "b", "c", "d"), ("d", "x", "b", "a", "y")


@pytest.fixture(params=["arcface", "softmax"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path, kind: str) -> Path:
    save_weights(classifier(len(THEN), 1, SLIM, kind=kind), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_the_backbone_is_taken_whole_and_the_head_by_label(file: Path, kind: str) -> None:
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
    assert taken.sentence("slim", "fold 0 of run old-1") == (
        "slim: starts from fold 0 of run old-1; 3 classes keep their rows of the head, 2 start at random (x, y), "
        "1 are left out (c)"
    )


def test_the_same_classes_give_the_same_network(file: Path, kind: str) -> None:
    network = classifier(len(THEN), 2, SLIM, kind=kind)
    copy_pretrained(network, file, THEN, THEN, "it")
    assert same(weights_of(network), weights_of(classifier(len(THEN), 1, SLIM, kind=kind)))


def test_no_class_in_common_leaves_the_head_random(file: Path, kind: str) -> None:
    network = classifier(2, 2, SLIM, kind=kind)
    head = weights_of(network)["head.weight"]
    assert copy_pretrained(network, file, THEN, ("x", "y"), "it").known == ()
    assert torch.equal(weights_of(network)["head.weight"], head)


@pytest.mark.parametrize("change", ["another backbone", "a tensor less", "a tensor more", "other classes", "no file"])
def test_another_architecture_is_refused_and_nothing_is_changed(file: Path, kind: str, change: str) -> None:
    network = classifier(len(NOW), 2, SMALL if change == "another backbone" else SLIM, kind=kind)
    tensors = load_file(str(file))
    if change == "a tensor less":
        del tensors["backbone.stem.0.weight"]
    if change == "a tensor more":
        tensors["backbone.more"] = torch.zeros(1)
    save_file(tensors, str(file))
    if change == "no file":
        file.unlink()
    before = weights_of(network)
    with pytest.raises(InputError, match=r"is of another architecture \(tensor |cannot read the weights"):
        copy_pretrained(network, file, THEN[:-1] if change == "other classes" else THEN, NOW, "it")
    assert same(weights_of(network), before)
