"""ArcFace against a plain loop, its gradients, and float32 under autocast."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.config import HeadConfig
from components.core.learning.network import ArcFaceHead, Classifier
from tests.components.core.learning.tiny_networks import SMALL

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


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_if_the_embedding_equals_the_weight(sign):
    head = ArcFaceHead(E, K, scale=30.0, margin=0.1)
    embedding_BE = (sign * 3.0 * head.weight.detach()).requires_grad_()
    torch.nn.functional.cross_entropy(head(embedding_BE, torch.arange(K)), torch.arange(K)).backward()
    assert torch.isfinite(embedding_BE.grad).all()
    assert torch.isfinite(head.weight.grad).all()
    assert head.weight.grad.abs().sum() > 0


def test_without_targets_there_is_no_margin():
    head = ArcFaceHead(E, K, scale=30.0, margin=0.3)
    embedding_BE, target_B = torch.randn(8, E), torch.arange(8) % K
    free_BK, trained_BK = head(embedding_BE).detach(), head(embedding_BE, target_B).detach()
    np.testing.assert_allclose(free_BK, plain_logits(embedding_BE, head.weight, None, 30.0, 0.3), atol=1e-4)
    lowered_BK = trained_BK < free_BK - 1e-3
    assert torch.equal(lowered_BK, torch.nn.functional.one_hot(target_B, K).bool())
    assert torch.equal(trained_BK[~lowered_BK], free_BK[~lowered_BK])


@pytest.mark.parametrize("kind", ["arcface", "softmax"])
@pytest.mark.parametrize("targets", [True, False])
def test_the_head_computes_in_float32_under_autocast(kind, targets):
    torch.manual_seed(1)
    head = Classifier(SMALL, HeadConfig(kind=kind), K).head
    target_B = torch.arange(6) % K if targets else None
    embedding_BE = torch.randn(6, SMALL.exit[-1]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BK = head(embedding_BE, target_B)
    assert logits_BK.dtype == torch.float32
    assert torch.equal(logits_BK, head(embedding_BE.float(), target_B))
