"""A plain stack of 3x3 convolutions, for small images, little data and CPUs. torch only.

B batch, C channel, H and W pixels, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.core.config import BackboneConfig


class Plain(nn.Module):
    """Stages of 3x3 convolutions, 2x2 max pooling between stages, and global average pooling at the end.

    Each convolution is followed by BatchNorm and ReLU. (Simonyan & Zisserman 2014, arXiv 1409.1556, without dense layers.)
    """

    def __init__(self, config: BackboneConfig, channels: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for k, stage in enumerate(config.stages):
            for j, outputs in enumerate(stage):
                convolution = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                # Before BatchNorm and ReLU, which then cost a quarter.
                pool = [nn.MaxPool2d(2)] if j == len(stage) - 1 and k < len(config.stages) - 1 else []
                layers += [convolution, *pool, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                width = outputs
        self.layers = nn.Sequential(*layers)
        self.embedding_size = width

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Embeddings, shape (B, E), of standardised images, shape (B, C, H, W)."""
        return torch.mean(self.layers(x_BCHW).float(), dim=(2, 3))  # float32 under autocast too, as in Xception
