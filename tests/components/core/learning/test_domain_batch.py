"""Batches of several domains: one pass equals a pass for each domain, gradients included, in any order of the domains."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from components.core.config import BackboneConfig
from components.core.learning.domain_batch import several_domains
from components.core.learning.team import running_statistics
from tests.components.core.learning.tiny_networks import SLIM, classifier, same, weights_of

SIDE = 32
# timm's BatchNorm layers also activate.
TIMM = BackboneConfig(name="timm", kind="timm", model="test_efficientnet")
PLAIN = BackboneConfig(name="plain", kind="plain", stages=((4, 4), (6,)))
CLASSES = 3


def images_of(domains: int, wells: int, seed: int = 0) -> Tensor:
    """(D n, 6, S, S), domains of different means and deviations."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(domains, wells, 6, SIDE, SIDE, generator=random)
    mean, std = (torch.randn(domains, 1, 6, 1, 1, generator=random) for _ in range(2))
    return (x * std.exp() + mean).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def passed(network: nn.Module, x: Tensor, target_B: Tensor, domains: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, and gradients of the mean loss by images and parameters."""
    x = x.clone().requires_grad_()
    network.zero_grad()
    with several_domains(network, domains):
        logits_BK = network(x)
    nn.functional.cross_entropy(logits_BK, target_B).backward()
    return logits_BK.detach(), x.grad, {n: p.grad.clone() for n, p in network.named_parameters()}


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backbone", [SLIM, PLAIN, TIMM], ids=["xception", "plain", "timm"])
def test_one_pass_equals_a_pass_for_each_domain(backbone):
    together = classifier(CLASSES, 1, backbone)
    apart = [deepcopy(together) for _ in range(3)]
    x, target_B = images_of(3, 4), torch.arange(12) % CLASSES
    logits_BK, grad_x, grads = passed(together, x, target_B, 3)
    each = [passed(n, *own, 1) for n, *own in zip(apart, x.chunk(3), target_B.chunk(3), strict=True)]
    close(logits_BK, torch.cat([own for own, _, _ in each]))
    close(grad_x, torch.cat([own for _, own, _ in each]) / 3)
    mean = {name: sum(own[name] for _, _, own in each) / 3 for name in grads}
    torch.testing.assert_close(grads, mean, rtol=1e-2, atol=2e-4)
    # Running statistics follow the mean over domains.
    for got, *own in zip(running_statistics([together]), *(running_statistics([n]) for n in apart), strict=True):
        close(got, torch.stack(own).mean(0))


@given(
    st.integers(2, 5),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
    st.sampled_from([0.01, 0.1, 0.9, 1.0, None]),
)
def test_the_order_of_domains_does_not_matter(domains, wells, random, momentum):
    layer = nn.BatchNorm2d(6, momentum=momentum)
    nn.init.uniform_(layer.running_mean)
    other = deepcopy(layer)
    x = images_of(domains, wells)
    order = random.sample(range(domains), domains)
    moved = x.unflatten(0, (domains, wells))[order].flatten(0, 1)
    with several_domains(layer, domains):
        one = layer(x)
    with several_domains(other, domains):
        two = other(moved)
    assert torch.equal(one.unflatten(0, (domains, wells))[order].flatten(0, 1), two)
    close(weights_of(layer), weights_of(other))
    assert layer.momentum == momentum


def test_only_training_batches_within_the_context_have_domains():
    network, plain = classifier(CLASSES), classifier(CLASSES)
    x = images_of(2, 4)
    with several_domains(network, 1):
        assert torch.equal(network(x), plain(x))
    assert {type(module) for module in network.modules()} == {type(module) for module in plain.modules()}
    with several_domains(network, 2):
        several = network(x)
        network.eval()
        plain.load_state_dict(network.state_dict())
        assert torch.equal(network(x), plain.eval()(x))
    network.train()
    together = plain.train()(x)
    assert not torch.allclose(several, together)
    assert torch.equal(network(x), together)
    assert same(weights_of(network), weights_of(plain))


def test_compiles_to_one_graph():
    eager, compiled = classifier(CLASSES, 1, PLAIN), classifier(CLASSES, 1, PLAIN)
    compiled.backbone.compile(backend="eager", fullgraph=True)
    for domains, wells in ((3, 2), (3, 4), (2, 4), (1, 5)):
        x, target_B = images_of(domains, wells), torch.arange(domains * wells) % CLASSES
        close(passed(compiled, x, target_B, domains), passed(eager, x, target_B, domains))
    close(weights_of(compiled), weights_of(eager))
