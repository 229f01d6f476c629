"""ArcFace against a plain loop, its gradients, and its sum with a linear classifier."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.config import HeadConfig
from components.core.learning.network import ArcFaceHead
from tests.components.core.learning.tiny_networks import classifier

E, K = 5, 4


def at_angles(head: ArcFaceHead, target: int, theta_B: np.ndarray) -> torch.Tensor:
    """Embeddings of different lengths at given angles from a class's weight, shape (B, E)."""
    own = head.weight[target].detach().double().numpy()
    own /= np.linalg.norm(own)
    other = np.linspace(1.0, 2.0, E)
    other -= other @ own * own
    other /= np.linalg.norm(other)
    length_B1 = np.linspace(0.5, 3.0, len(theta_B))[:, None]
    return torch.from_numpy(length_B1 * (np.cos(theta_B)[:, None] * own + np.sin(theta_B)[:, None] * other)).float()


def plain_logits(embedding_BE: torch.Tensor, weight_KE: torch.Tensor, target_B, scale: float, margin: float):
    """Deng et al. 2019 as a loop over wells and classes, in float64, through the angle itself."""
    embedding_BE, weight_KE = embedding_BE.double().numpy(), weight_KE.detach().double().numpy()
    out_BK = np.empty((len(embedding_BE), len(weight_KE)))
    for b, x in enumerate(embedding_BE):
        for k, w in enumerate(weight_KE):
            cosine = float(np.clip(x @ w / np.linalg.norm(x) / np.linalg.norm(w), -1.0, 1.0))
            if target_B is not None and k == target_B[b]:
                if cosine > math.cos(math.pi - margin):
                    cosine = math.cos(math.acos(cosine) + margin)
                else:
                    cosine -= margin * math.sin(math.pi - margin)
            out_BK[b, k] = scale * cosine
    return out_BK


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), margin=st.floats(0.0, 1.2), scale=st.floats(1.0, 64.0), target=st.integers(0, K - 1))
def test_agrees_with_a_plain_loop_at_every_angle(seed, margin, scale, target):
    torch.manual_seed(seed)
    head = ArcFaceHead(E, K, scale, margin)
    # Angles at a distance from pi - m: within rounding of it either branch is right.
    theta_B = np.linspace(0.02, math.pi - 0.02, 31)
    theta_B = theta_B[np.abs(theta_B - (math.pi - margin)) > 1e-3]
    embedding_BE = at_angles(head, target, theta_B)
    target_B = torch.full((len(theta_B),), target)
    expected = plain_logits(embedding_BE, head.weight, target_B.tolist(), scale, margin)
    np.testing.assert_allclose(head(embedding_BE, target_B).detach(), expected, atol=2e-5 * scale)
    without_margin = plain_logits(embedding_BE, head.weight, None, scale, margin)
    np.testing.assert_allclose(head(embedding_BE).detach(), without_margin, atol=2e-5 * scale)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_if_the_embedding_equals_the_weight(sign):
    head = ArcFaceHead(E, K, scale=30.0, margin=0.1)
    embedding_BE = (sign * 3.0 * head.weight.detach()).requires_grad_()
    torch.nn.functional.cross_entropy(head(embedding_BE, torch.arange(K)), torch.arange(K)).backward()
    assert torch.isfinite(embedding_BE.grad).all()
    assert torch.isfinite(head.weight.grad).all()
    assert head.weight.grad.abs().sum() > 0


def test_the_joint_loss_is_the_weighted_sum_of_both_and_the_linear_classifier_predicts():
    """Reference: the published main.py and model.py, `loss * (1 - 0.2) + metric_loss * 0.2`, through plain float64."""
    network = classifier(K, linear_weight=0.8, margin=0.5).eval()
    x, target_B = torch.randn(6, 6, 16, 16), torch.arange(6) % K
    embedding_BE = network.embed(x)
    linear_BK = embedding_BE @ network.head.linear.weight.T + network.head.linear.bias
    torch.testing.assert_close(network(x), linear_BK)
    arcface_BK = plain_logits(embedding_BE.detach(), network.head.arcface.weight, target_B.tolist(), 30.0, 0.5)
    for smoothing in (0.0, 0.1):
        wanted_BK = (1 - smoothing) * np.eye(K)[target_B] + smoothing / K
        losses = [
            -(wanted_BK * torch.as_tensor(of_BK).detach().double().log_softmax(1).numpy()).sum(1).mean()
            for of_BK in (linear_BK, arcface_BK)
        ]
        loss = network.loss(network(x, target_B), target_B, smoothing)
        assert loss.item() == pytest.approx(0.8 * losses[0] + 0.2 * losses[1], rel=1e-5)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.head.parameters())


def test_a_linear_classifier_beside_a_softmax_head_is_refused():
    with pytest.raises(
        ValueError, match="linear_weight is of a classifier beside ArcFace; set kind to arcface, got softmax"
    ):
        HeadConfig(kind="softmax", linear_weight=0.8)


@pytest.mark.parametrize("head", [{}, {"kind": "softmax"}, {"linear_weight": 0.8, "margin": 0.5}])
def test_two_targets_of_an_image_are_the_weighted_sum_of_both_losses(head):
    """As CutMix has them; ArcFace enlarges the angle of one target at a time."""
    network = classifier(K, **head).eval()
    x, first, second = torch.randn(6, 6, 16, 16), torch.arange(6) % K, (torch.arange(6) + 2) % K
    share_B = torch.rand(6, generator=torch.Generator().manual_seed(2))
    targets, weight = torch.cat([first, second]), 2.0 * torch.cat([share_B, 1.0 - share_B])
    found = network.loss(network(x, targets), targets, 0.1, weight)
    expected = sum(
        share_B[b] * network.loss(network(x[b : b + 1], first[b : b + 1]), first[b : b + 1], 0.1)
        + (1.0 - share_B[b]) * network.loss(network(x[b : b + 1], second[b : b + 1]), second[b : b + 1], 0.1)
        for b in range(6)
    )
    torch.testing.assert_close(found, expected / 6)
