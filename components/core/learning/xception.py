"""Parametric Xception for six-channel images (Chollet 2017, arXiv 1610.02357): full widths and tiny ones by config. torch only.

B batch, C channel, H and W pixels, E embedding.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from components.core.config import BackboneConfig


class SeparableConv(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1, both without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )


class Block(nn.Module):
    """Residual block of separable convolutions: ReLU, convolution, BatchNorm, repeated; then max pooling if it strides.

    Args:
        widths: channels before and after each separable convolution.
        stride: 1 keeps the size, 2 halves it; with stride 2 or a change of width the shortcut is a 1x1 convolution.
        leading_relu: false for the first block, whose input is rectified already.
    """

    def __init__(self, widths: tuple[int, ...], stride: int, leading_relu: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise(widths)):
            if k > 0 or leading_relu:
                # The shortcut reads the same input, so the first ReLU must not work in place.
                layers.append(nn.ReLU(inplace=k > 0))
            layers += [SeparableConv(inputs, outputs), nn.BatchNorm2d(outputs)]
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        self._stride = stride
        if stride > 1 or widths[0] != widths[-1]:
            self.shortcut = nn.Sequential(nn.Conv2d(widths[0], widths[-1], 1, bias=False), nn.BatchNorm2d(widths[-1]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Adds the body to the shortcut."""
        # Equals a strided 1x1 convolution; oneDNN's corrupts memory in backward with few channels (torch 2.14, channels last).
        strided_BCHW = x_BCHW[:, :, :: self._stride, :: self._stride] if self._stride > 1 else x_BCHW
        out: Tensor = self.body(x_BCHW) + self.shortcut(strided_BCHW)
        return out


class Xception(nn.Module):
    """Entry, middle and exit flow, then global average pooling; no ReLU after the last BatchNorm.

    Unlike Chollet's, it has a 7x7 stride-2 padding-3 stem without bias, and another number of input channels. A second
    convolution and three strided blocks complete the entry flow; `middle_blocks` blocks of three convolutions follow.
    """

    def __init__(self, config: BackboneConfig, channels: int = 6) -> None:
        super().__init__()
        first, *rest = config.entry
        self.stem = nn.Sequential(
            nn.Conv2d(channels, config.stem, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(config.stem),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.stem, first, 3, stride=config.second_stride, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
        )
        blocks: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise((first, *rest))):
            blocks.append(Block((inputs, outputs, outputs), stride=2, leading_relu=k > 0))
        self.entry = nn.Sequential(*blocks)
        width = config.entry[-1]
        self.middle = nn.Sequential(*(Block((width,) * 4, stride=1) for _ in range(config.middle_blocks)))
        a, b, c = config.exit
        self.exit = nn.Sequential(
            Block((width, width, a), stride=2),
            SeparableConv(a, b),
            nn.BatchNorm2d(b),
            nn.ReLU(inplace=True),
            SeparableConv(b, c),
            nn.BatchNorm2d(c),
        )
        self.embedding_size = c
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and (module.groups == 1 or config.depthwise_init == "fan_out"):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Embeddings, shape (B, E), of standardised images, shape (B, C, H, W)."""
        x = self.exit(self.middle(self.entry(self.stem(x_BCHW))))
        return torch.mean(x.float(), dim=(2, 3))  # in float32 under autocast too: head and user get this mean
