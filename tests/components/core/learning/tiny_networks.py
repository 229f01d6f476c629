"""Networks, settings and images small enough for a test: the tiny screen, two CPU-sized Xceptions, a second an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.core.config import (
    AugmentConfig,
    BackboneConfig,
    HeadConfig,
    MeanTeacherConfig,
    PredictConfig,
    PretrainConfig,
    RunConfig,
    StandardiseConfig,
)
from components.core.learning.fold_data import FoldData, FoldWells, Validation
from components.core.learning.images import Images, open_images
from components.core.learning.loader import SiteLoader
from components.core.learning.network import Classifier
from components.core.learning.step_settings import MeanTeacherSettings, PretrainSettings
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from tests.tiny_screen import CONFIG, SIZE

CPU = torch.device("cpu")
SMALL = BackboneConfig(name="small", stem=4, entry=(6, 8), middle_blocks=1, exit=(8, 12, 16))
SLIM = BackboneConfig(name="slim", stem=4, second_stride=2, entry=(4, 6), middle_blocks=0, exit=(6, 8, 12))
STILL = AugmentConfig(geometric_probability=0.0, erase_probability=0.0, crop=(1.0, 1.0))
RUN = RunConfig(
    seed=3,
    screen=CONFIG.screen,
    folds=CONFIG.folds,
    backbones=(SMALL, SLIM),
    pretrain=PretrainConfig(epochs=2, batch_size=8, learning_rates=(3e-3, 1e-3), milestones=(1,)),
    mean_teacher=MeanTeacherConfig(
        labelled_batch=8, unlabelled_batch=8, learning_rate=0.03, cycle_epochs=1, ratio={}, cycles=3, final_epochs=0,
        ramp_epochs=1, pseudo_label_weight=0.3, pseudo_label_passes=2,
    ),
    predict=PredictConfig(views=2, batch_size=16),
)  # fmt: skip
PRETRAIN = RUN.section(PretrainSettings)
MEAN_TEACHER = RUN.section(MeanTeacherSettings)


def changed(config: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """A configuration with other fields in some sections."""
    update = {name: getattr(config, name).model_copy(update=dict(fields)) for name, fields in sections.items()}
    return RunConfig.model_validate(config.model_copy(update=update).model_dump())


def images_of(screen: tuple[ObjectStore, Manifest]) -> Images:
    """A screen's images without augmentation and jitter."""
    store, manifest = screen
    settings = RUN.model_copy(update={"standardise": StandardiseConfig(jitter=0.0), "augment": STILL})
    return open_images(settings, manifest, store, CPU)


EMPTY = np.empty(0, dtype=np.intp)


def data_of(
    images: Images,
    training: NDArray[np.intp],
    validation: NDArray[np.intp] = EMPTY,
    score: Callable[[NDArray[np.float32]], float] = lambda _: 0.0,
    classes: int = 2,
) -> FoldData:
    """Any wells as a fold, without plate groups."""
    wells = FoldWells(training, validation, EMPTY)
    return FoldData(images, wells, None, Validation(validation, score, 16, classes))


def pixels_of(images: Images, sites: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Decoded sites, (B, C, H, W)."""
    return next(images.loader.batches([sites])).numpy()


def reading(images: Images, pixels: Callable[[NDArray[np.intp]], Iterable[Any]]) -> Images:
    """The images with the pixels that a function returns for sites of their table."""

    class Reader:
        def read_into(self, sites: NDArray[np.intp], out: Sequence[NDArray[np.uint8]]) -> None:
            for into, values in zip(out, pixels(sites), strict=True):
                into[:] = values

    return replace(images, loader=SiteLoader(Reader(), images.table.sites, (6, SIZE, SIZE), 0))


def classifier(classes: int, seed: int = 0, backbone: BackboneConfig = SMALL, **head: Any) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(backbone, HeadConfig(**head), classes)


def answering(network: Classifier, logits_K: Tensor) -> Classifier:
    """The network, of head.kind softmax, with the same logits for every image."""
    network.head.weight.data.zero_()
    network.head.bias.data[:] = logits_K
    return network


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of its parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two sets of weights agree bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
