"""Weights on disk."""

import json

import pytest
import torch
from torch import nn

from components.core.errors import InputError
from components.core.learning.mean_teacher import Pair
from components.core.learning.weight_files import load_pairs, load_weights, save_pairs, save_weights, weights_digest
from tests.components.core.learning.tiny_networks import CPU, MEAN_TEACHER, SLIM, SMALL, classifier, same, weights_of


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: classifier(6), r"head\.weight: expected \(6, 16\), got \(5, 16\)"),
        (lambda: classifier(5, kind="softmax"), r"head\.bias: expected \(5,\), got nothing"),
        (lambda: nn.Linear(2, 2), r"backbone\.\S+: expected nothing, got \("),
    ],
)
def test_rejects_another_architecture_naming_the_tensor(tmp_path, network, message):
    path = tmp_path / "weights.safetensors"
    save_weights(classifier(5), path)
    other = network()
    before = weights_of(other)
    with pytest.raises(InputError, match=r"weights\.safetensors: weights of another architecture \(" + message):
        load_weights(other, path)
    assert same(before, weights_of(other))


def test_weights_that_are_not_finite_are_not_used(tmp_path):
    bad, own = classifier(5), classifier(5, seed=1)
    bad.backbone.stem[1].running_var[2] = torch.nan
    save_weights(bad, tmp_path / "weights.safetensors")
    before = weights_of(own)
    with pytest.raises(InputError, match=r"backbone\.stem\.1\.running_var has a value that is not finite"):
        load_weights(own, tmp_path / "weights.safetensors")
    assert same(before, weights_of(own))


def test_pairs_round_trip_with_steps_and_history(tmp_path):
    history = [{"epoch": 1, "loss": 2.5, "accuracy": None}]
    saved = [
        Pair(b.name, classifier(5, seed, b), classifier(5, seed + 10, b), step=40 + seed)
        for seed, b in enumerate((SMALL, SLIM))
    ]
    save_pairs(saved, tmp_path / "out", 3, history, fold=1, cell_type="HUVEC")
    loaded, records = load_pairs(tmp_path / "out", MEAN_TEACHER, 5, (6, 64), CPU)
    assert records == history
    assert [(p.name, p.step) for p in loaded] == [("small", 40), ("slim", 41)]
    for old, new in zip(saved, loaded, strict=True):
        assert same(weights_of(old.student), weights_of(new.student))
        assert same(weights_of(old.teacher), weights_of(new.teacher))
        assert all(p.requires_grad for p in new.student.parameters())
        assert not any(p.requires_grad for p in new.teacher.parameters())
        x = torch.randn(2, 6, 16, 16)
        torch.testing.assert_close(old.student.eval()(x), new.student.eval()(x))  # memory formats differ
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta == {"fold": 1, "cell_type": "HUVEC", "epoch": 3, "steps": {"small": 40, "slim": 41}}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"fold": 1}'])
def test_rejects_a_folder_without_weights(tmp_path, content):
    if content is not None:
        (tmp_path / "meta.json").write_text(content)
    with pytest.raises(InputError, match=r"meta\.json: .*pretrain"):
        weights_digest(tmp_path)
