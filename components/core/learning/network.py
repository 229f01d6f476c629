"""The network of a step: backbone and classifier head. torch only; timm is imported if a config uses one of its models.

B batch, E embedding, K class, T cell types.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.core.config import BackboneConfig, ComputeConfig, HeadConfig
from components.core.errors import InputError
from components.core.learning.device import uses_bfloat16
from components.core.learning.plain import Plain
from components.core.learning.xception import Xception


class ArcFaceHead(nn.Module):
    """Additive angular margin: logits are scaled cosines; the angle of the true class is enlarged by the margin.

    The true class gets s cos(theta + m) if cos(theta) > cos(pi - m), else s (cos(theta) - m sin(pi - m)), which keeps
    the logit monotonic in theta (Deng et al. 2019, section 2, and its authors' treatment of angles past pi - m); s is the
    scale, m the margin in radians.
    """

    def __init__(self, embedding_size: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, embedding_size))
        nn.init.xavier_uniform_(self.weight)
        self.scale = scale
        self.margin = margin

    def forward(self, embedding_BE: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K), float32; the margin applies only with targets (training)."""
        # Angles near 0 and pi lose all precision in half types, so the head runs in float32 even under autocast.
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
    """Plain linear classifier in float32, called as ArcFaceHead is."""

    def forward(self, embedding_BE: Tensor, target_B: Tensor | None = None) -> Tensor:
        """Logits, shape (B, K), float32; targets are ignored."""
        with torch.autocast(embedding_BE.device.type, enabled=False):
            return F.linear(embedding_BE.float(), self.weight.float(), self.bias.float())


class JointHead(nn.Module):
    """A linear classifier and ArcFace on the same embedding, trained together; the linear one predicts.

    Source: the 1st place of the CellSignal challenge (M. Sypetkowski, github.com/maciej-sypetkowski/kaggle-rcic-1st).
    """

    def __init__(self, embedding_size: int, classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.linear = SoftmaxHead(embedding_size, classes)
        self.arcface = ArcFaceHead(embedding_size, classes, scale, margin)

    def forward(self, embedding_BE: Tensor, target_B: Tensor | None = None) -> Tensor:
        """The linear classifier's logits, (B, K), float32; with targets both classifiers', (2, B, K), for `Classifier.loss`."""
        linear_BK: Tensor = self.linear(embedding_BE)
        return linear_BK if target_B is None else torch.stack([linear_BK, self.arcface(embedding_BE, target_B)])


class CellTypeNeck(nn.Module):
    """BatchNorm, the one-hot cell type beside it, a linear layer, ReLU, BatchNorm, a linear layer, BatchNorm.

    As published, except that the cell type joins after the first BatchNorm: in a batch of one cell type, as of the mean teacher
    or of a domain, BatchNorm would normalise it to zero. The ReLU is why it tells something there: BatchNorm would
    remove what a linear layer alone adds to all images of the batch.

    Source: the 1st place of the CellSignal challenge (M. Sypetkowski, github.com/maciej-sypetkowski/kaggle-rcic-1st).
    """

    def __init__(self, embedding_size: int, cell_types: int) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(embedding_size)
        self.join = nn.Linear(embedding_size + cell_types, embedding_size, bias=False)
        self.rest = nn.Sequential(
            nn.ReLU(),
            nn.BatchNorm1d(embedding_size),
            nn.Linear(embedding_size, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, embedding_BE: Tensor, type_BT: Tensor) -> Tensor:
        """Embeddings, shape (B, E)."""
        return cast(Tensor, self.rest(self.join(torch.cat([self.normalise(embedding_BE), type_BT], 1))))


class Classifier(nn.Module):
    """Six-channel image in, logits over the screen's classes out.

    Vision transformers are built for one image size, a side in pixels; `cell_types` is T, which only head.cell_types needs.

    Attributes:
        embedding_size: E.
        autocasts: whether the backbone computes in bfloat16; the head never does.

    Raises:
        InputError: an unknown timm model, or one that does not accept these images.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        head: HeadConfig,
        classes: int,
        channels: int = 6,
        image_size: int = 512,
        cell_types: int = 0,
    ) -> None:
        super().__init__()
        self.backbone, size = build_backbone(backbone, channels, image_size)
        self.neck: nn.Module = nn.BatchNorm1d(size) if head.batch_norm else nn.Identity()
        if head.cell_types:
            self.neck = CellTypeNeck(size, cell_types)
        self.embedding_size = size
        self.autocasts = False
        self._head_config, self._classes = head, classes
        self.reset_head()

    def forward(self, x_BCHW: Tensor, target_B: Tensor | None = None, type_BT: Tensor | None = None) -> Tensor:
        """Logits of standardised images, shape (B, K), float32; with targets what `loss` takes: ArcFace applies its margin.

        `type_BT` are one-hot cell types (Images.cell_types_of), which only a network with head.cell_types reads. Images may have
        several targets each, first one of every image, then another one of every image, and so on; then B counts those.
        """
        embedding_BE = self.embed(x_BCHW, type_BT)
        if target_B is not None and len(target_B) > len(embedding_BE):
            embedding_BE = embedding_BE.repeat(len(target_B) // len(embedding_BE), 1)
        return cast(Tensor, self.head(embedding_BE, target_B))

    def loss(
        self, output: Tensor, target_B: Tensor, label_smoothing: float = 0.0, weight_B: Tensor | None = None
    ) -> Tensor:
        """Supervised loss, a mean over targets, of the output of `forward` with the same targets; their weights' mean is 1."""

        def cross_entropy(logits_BK: Tensor) -> Tensor:
            if weight_B is None:
                return F.cross_entropy(logits_BK, target_B, label_smoothing=label_smoothing)
            each_B = F.cross_entropy(logits_BK, target_B, label_smoothing=label_smoothing, reduction="none")
            return (each_B * weight_B).mean()

        weight = self._head_config.linear_weight
        if not weight:
            return cross_entropy(output)
        of_linear, of_arcface = map(cross_entropy, output)
        return weight * of_linear + (1.0 - weight) * of_arcface

    def embed(self, x_BCHW: Tensor, type_BT: Tensor | None = None) -> Tensor:
        """Embeddings, shape (B, E), float32; the backbone computes in bfloat16 if `autocasts` is set."""
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=self.autocasts):
            embedding_BE = self.backbone(x_BCHW)
        inputs = (embedding_BE.float(), type_BT) if isinstance(self.neck, CellTypeNeck) else (embedding_BE.float(),)
        return cast(Tensor, self.neck(*inputs))

    @property
    def has_neck(self) -> bool:
        """Whether BatchNorm follows the backbone, which needs at least two images of a domain in training."""
        return not isinstance(self.neck, nn.Identity)

    def reset_head(self) -> None:
        """Replaces the classifier by a new, randomly initialised one."""
        config, sizes = self._head_config, (self.embedding_size, self._classes)
        head: nn.Module
        if config.kind == "softmax":
            head = SoftmaxHead(*sizes)
        else:
            head = (JointHead if config.linear_weight else ArcFaceHead)(*sizes, config.scale, config.margin)
        self.head = head.to(next(self.backbone.parameters()).device)


def build_backbone(config: BackboneConfig, channels: int, image_size: int) -> tuple[nn.Module, int]:
    """A backbone and the size of its embedding; raises InputError for an unknown timm model, or images that it cannot take."""
    if image_size < config.smallest_input:
        raise InputError(
            f"images of {image_size} x {image_size} pixels (screen.image_size, bin and crop) are too small for the strides of "
            f"backbone {config.name}, from {config.smallest_input} x {config.smallest_input} on; give fewer stages"
        )
    if config.kind == "timm":
        return _build_timm(config, channels, image_size)
    network = Plain(config, channels) if config.kind == "plain" else Xception(config, channels)
    return network, network.embedding_size


def _build_timm(config: BackboneConfig, channels: int, image_size: int) -> tuple[nn.Module, int]:
    import timm  # takes a second, so it is imported only for timm models

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
    # An empty image shows what no attribute shows for every model: whether it takes this size, and the size of its embedding.
    try:
        with torch.no_grad():  # not inference_mode, because a model may cache tensors that training uses
            embedding = model.eval()(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{where}: {config.model} cannot take images of {image_size} x {image_size} pixels "
            f"({' '.join(str(error).split())}); choose another model"
        ) from None
    if embedding.ndim != 2:
        raise InputError(f"{where}: {config.model} gives an output of shape {tuple(embedding.shape)}, not one vector")
    return model.train(), int(embedding.shape[1])


def prepare(network: Classifier, compute: ComputeConfig, device: torch.device) -> None:
    """Sets memory format and arithmetic of a network for its device, and compiles it if configured; in place.

    Raises:
        InputError: compilation is configured, but there is no GPU.
    """
    network.to(memory_format=torch.channels_last)
    network.autocasts = uses_bfloat16(compute, device)
    if device.type == "cuda":
        # A resumed step must end as an uninterrupted one, so convolutions sum in a fixed order; and float32 must be float32.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
    if compute.compile:
        if device.type != "cuda":
            raise InputError("compute.compile: there is no GPU here; set it to false")
        network.backbone.compile()
