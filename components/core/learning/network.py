"""Backbone plus head: the network of one DAG step. torch only; timm is imported where a config names one of its models."""

from __future__ import annotations

from typing import Any, cast

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
        image_size: side of the images, pixels; vision transformers and their like are built for one size.

    Attributes:
        embedding_size: E.
        autocasts: whether the backbone computes in bfloat16; the head never does.

    Raises:
        InputError: no such timm model, or one that cannot take these images.
    """

    def __init__(
        self, backbone: BackboneConfig, head: HeadConfig, classes: int, channels: int = 6, image_size: int = 512
    ) -> None:
        super().__init__()
        self.backbone, size = _build_backbone(backbone, channels, image_size)
        self.head = build_head(head, size, classes)
        self.embedding_size = size
        self.autocasts = False
        self._new_head = (head, size, classes)

    def forward(self, x_BCHW: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K), float32, of standardised images; with targets the head may apply its margin."""
        return cast(Tensor, self.head(self.embed(x_BCHW), target_B))

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """Output of the backbone, shape (B, E), float32; computed in bfloat16 where `autocasts` is set."""
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=self.autocasts):
            embedding_BE = self.backbone(x_BCHW)
        return cast(Tensor, embedding_BE.float())

    def reset_head(self) -> None:
        """Drops the classifier for a new, randomly initialised one."""
        device = next(self.parameters()).device
        self.head = build_head(*self._new_head).to(device)


def _build_backbone(config: BackboneConfig, channels: int, image_size: int) -> tuple[nn.Module, int]:
    if config.kind == "xception":
        network = Xception(config, channels)
        return network, network.embedding_size
    return _build_timm(config, channels, image_size)


def _build_timm(config: BackboneConfig, channels: int, image_size: int) -> tuple[nn.Module, int]:
    import timm  # a second's import that only runs with timm models pay

    where = f"backbones.{config.name}.model"
    assert config.model is not None
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    try:
        known = timm.get_pretrained_cfg(config.model)
        if known is not None and known.fixed_input_size:
            options["img_size"] = image_size
        model = cast(nn.Module, timm.create_model(config.model, pretrained=False, **options))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from None
    # One empty image tells what no attribute tells of every model: that it takes this size, and how wide it embeds.
    try:
        with torch.no_grad():  # no inference_mode: what a model caches here is used in training
            embedding = model.eval()(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{where}: {config.model} cannot take images of {image_size} x {image_size} pixels "
            f"({' '.join(str(error).split())}); set another model"
        ) from None
    if embedding.ndim != 2:
        raise InputError(f"{where}: {config.model} gives an output of shape {tuple(embedding.shape)}, not one vector")
    return model.train(), int(embedding.shape[1])


def pick_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
