"""Backbone plus head: the network of one DAG step. torch only; timm is imported where a config names one of its models."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from components.core.config import BackboneConfig, HeadConfig
from components.core.errors import InputError
from components.core.learning.arcface import build_head
from components.core.learning.xception import Xception


class Classifier(nn.Module):
    """Six-channel image in, logits over the screen's classes out.

    Args:
        backbone: which network.
        head: which classifier.
        classes: number of classes K.
        channels: input channels.
    """

    def __init__(self, backbone: BackboneConfig, head: HeadConfig, classes: int, channels: int = 6) -> None:
        super().__init__()
        self.backbone, size = _build_backbone(backbone, channels)
        self.head = build_head(head, size, classes)
        self.embedding_size = size
        self._new_head = (head, size, classes)

    def forward(self, x_BCHW: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K), float32, of standardised images; with targets the head may apply its margin."""
        return cast(Tensor, self.head(self.backbone(x_BCHW), target_B))

    def reset_head(self) -> None:
        """Drops the classifier for a new, randomly initialised one."""
        device = next(self.parameters()).device
        self.head = build_head(*self._new_head).to(device)


def _build_backbone(config: BackboneConfig, channels: int) -> tuple[nn.Module, int]:
    if config.kind == "xception":
        network = Xception(config, channels)
        return network, network.embedding_size
    import timm  # a second's import that only runs with timm models pay

    try:
        model = timm.create_model(config.model, pretrained=False, in_chans=channels, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"backbones.{config.name}.model: {' '.join(str(error).split())}") from None
    # Some models (MobileNetV3, GhostNet, HGNet) widen their features after pooling; num_features is the width before.
    return cast(nn.Module, model), int(getattr(model, "head_hidden_size", None) or model.num_features)


def pick_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
