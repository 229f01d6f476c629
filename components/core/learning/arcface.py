"""Classifier heads on an embedding: ArcFace (Deng et al. 2019, arXiv 1801.07698) and plain softmax. torch only.

B batch, E embedding, K class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.core.config import HeadConfig


class ArcFaceHead(nn.Module):
    """Additive angular margin: logits are scaled cosines; the true class is judged at an angle enlarged by the margin.

    The true class gets s cos(theta + m) where cos(theta) > cos(pi - m), else s (cos(theta) - m sin(pi - m)), which keeps
    the logit monotonic in theta (Deng et al. 2019, section 2, and its authors' treatment of angles past pi - m).

    Args:
        embedding_size: E.
        classes: K.
        scale: s.
        margin: m, radians.
    """

    def __init__(self, embedding_size: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, embedding_size))
        nn.init.xavier_uniform_(self.weight)
        self.scale = scale
        self.margin = margin

    def forward(self, embedding_BE: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K), float32; the margin applies only where targets are given (training)."""
        # Angles near 0 and pi lose all precision in half types, so the head runs in float32 under autocast too.
        with torch.autocast(embedding_BE.device.type, enabled=False):
            cosine_BK = F.linear(F.normalize(embedding_BE.float()), F.normalize(self.weight.float()))
            if target_B is None:
                return self.scale * cosine_BK
            cosine_B1 = cosine_BK.gather(1, target_B[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)
            sine_B1 = torch.sqrt(1.0 - cosine_B1.square())
            # cos(theta + m) by the sum formula: no acos, whose gradient explodes at +-1.
            enlarged_B1 = cosine_B1 * math.cos(self.margin) - sine_B1 * math.sin(self.margin)
            linear_B1 = cosine_B1 - self.margin * math.sin(math.pi - self.margin)
            true_B1 = torch.where(cosine_B1 > math.cos(math.pi - self.margin), enlarged_B1, linear_B1)
            return self.scale * cosine_BK.scatter(1, target_B[:, None], true_B1)


class SoftmaxHead(nn.Linear):
    """Plain linear classifier with the same call as ArcFaceHead, in float32."""

    def forward(self, embedding_BE: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K), float32; targets change nothing."""
        with torch.autocast(embedding_BE.device.type, enabled=False):
            return F.linear(embedding_BE.float(), self.weight.float(), self.bias.float())


def build_head(config: HeadConfig, embedding_size: int, classes: int) -> nn.Module:
    """The head that the configuration names."""
    if config.kind == "arcface":
        return ArcFaceHead(embedding_size, classes, config.scale, config.margin)
    return SoftmaxHead(embedding_size, classes)
