from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from components.core.errors import InputError, StepError
from components.core.learning.weight_files import load_weights, save_weights
from tests.components.core.learning.tiny_networks import SLIM, classifier, same, weights_of


def test_weights_come_back_bit_for_bit_with_their_statistics(tmp_path):
    network = classifier(5, seed=1)
    network.train()
    network(torch.randn(4, 6, 16, 16))
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(network.to(memory_format=torch.channels_last), path, {"epoch": "3"})
    other = classifier(5, seed=2)
    assert not same(weights_of(network), weights_of(other))
    load_weights(other, path)
    assert same(weights_of(network), weights_of(other))
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"epoch": "3"}
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: classifier(6), r"head\.weight: expected \(6, 16\), got \(5, 16\)"),
        (lambda: classifier(5, kind="softmax"), r"head\.bias: expected \(5,\), got nothing"),
        (lambda: classifier(5, backbone=SLIM), r"backbone\.\S+: expected "),
        (lambda: nn.Linear(2, 2), r"backbone\.\S+: expected nothing, got \("),
    ],
)
def test_another_architecture_is_an_error_that_names_the_tensor_and_changes_nothing(tmp_path, network, message):
    path = tmp_path / "weights.safetensors"
    save_weights(classifier(5), path)
    other = network()
    before = weights_of(other)
    with pytest.raises(InputError, match=r"weights\.safetensors: weights of another architecture \(" + message):
        load_weights(other, path)
    assert same(before, weights_of(other))


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text", "folder"])
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    if damage == "truncated":
        save_weights(classifier(5), path)
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"this is not a tensor" * 20)
    with pytest.raises(InputError, match=r"weights\.safetensors: cannot read the weights") as caught:
        load_weights(classifier(5), path)
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_half_way_leaves_the_old_weights(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(classifier(5, seed=1), path)
    before = path.read_bytes()

    def full_disk(file: Path, data: bytes) -> int:
        with file.open("wb") as half:
            half.write(data[:100])
        raise OSError(28, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(StepError, match="no space left"):
        save_weights(classifier(5, seed=2), path)
    assert path.read_bytes() == before
    with pytest.raises(StepError, match="no space left"):
        save_weights(classifier(5, seed=2), tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
