"""The configuration sections that each training step reads, the fields that affect its results, and its seeds. Pure pydantic."""

from __future__ import annotations

import zlib
from importlib.metadata import version
from typing import Any, Self

from components.core.config import (
    AugmentConfig,
    BackboneConfig,
    BatchNormConfig,
    ComputeConfig,
    EmbeddingsConfig,
    FrozenModel,
    HeadConfig,
    LoaderConfig,
    MeanTeacherConfig,
    PredictConfig,
    PretrainConfig,
    PriorConfig,
    ScreenConfig,
    StandardiseConfig,
)
from components.core.errors import InputError

TRAINING_CODE = (
    "components.core.learning",
    "components.core.prior",
    "components.core.evaluation.metrics",
    "components.core.screen.ome_zarr",
    "components.core.screen.histograms",
    "components.core.screen.packed",
    "components.core.storage.arrays",
    "components.core.storage.counts",
    "components.core.storage.manifest",
)
"""Source code that a training step's result depends on, besides the step's own."""

PREDICTING_CODE = ("components.core.storage.arrays",)
"""Source code besides TRAINING_CODE that the result of a predicting step depends on."""

LIBRARIES = ("numpy", "scipy", "timm", "torch")
"""Libraries whose version affects the results of training."""


def library_versions() -> str:
    """The installed versions of LIBRARIES, as text for a work key."""
    return " ".join(f"{name}=={version(name)}" for name in LIBRARIES)


_READ_BY_NORMALIZE = {
    "layout", "table_columns", "plate_map", "path_prefixes", "pattern", "channels", "image_size", "sites", "z",
    "time_point", "missing_images", "negative_controls", "positive_controls",
}  # fmt: skip
"""Fields of `screen` that say how tables and images are read: what they change is in the manifest, which is in every key."""
_NO_EFFECT: dict[str, Any] = {
    "loader": True,
    "compute": True,
    "backbones": {"__all__": {"weights"}},
    "screen": {*_READ_BY_NORMALIZE, "perturbation_name"},
}
"""Fields that affect no result: memory limits; `compute`, whose effect depends on the machine (device.arithmetic); the address
of initial weights, whose content pretrain's key includes; and of `screen` what is read and how labels are called."""


class LearningSettings(FrozenModel):
    """The configuration of every training step."""

    seed: int
    screen: ScreenConfig
    standardise: StandardiseConfig
    batch_norm: BatchNormConfig
    augment: AugmentConfig
    backbones: tuple[BackboneConfig, ...]
    head: HeadConfig
    prior: PriorConfig
    predict: PredictConfig
    loader: LoaderConfig
    compute: ComputeConfig

    def backbone(self, name: str) -> BackboneConfig:
        """The backbone of this name.

        Raises:
            InputError: there is none.
        """
        for backbone in self.backbones:
            if backbone.name == name:
                return backbone
        raise InputError(f"backbone {name!r} is not configured; backbones are {[b.name for b in self.backbones]}")

    def fold_seed(self, fold: int) -> int:
        """The seed of a fold's trainings; different for every fold of every run of up to 1,009 folds."""
        return self.seed * 1009 + fold

    def backbone_seed(self, fold: int, backbone: str) -> int:
        """The seed of a backbone's pretraining. Folds and backbones start from different weights, so that averaging helps.

        It depends on the backbone's name and not its index, so that a second backbone leaves the first one's weights as they are.
        """
        return self.seed * 1009 + fold * 31 + zlib.crc32(backbone.encode()) % 1009

    def _adapting_batch(self) -> str:
        """Inference's batch size if validation depends on it: AdaBN measures a domain batch by batch."""
        return "" if self.batch_norm.domain == "none" else f"batches of {self.predict.batch_size}"


class PretrainSettings(LearningSettings):
    """The configuration of pretrain."""

    pretrain: PretrainConfig
    init_from: str | None = None

    def fingerprint_of(self, backbone: str) -> str:
        """The fields that affect one backbone's weights, as JSON; the step adds the content of the weights it starts from."""
        # Neither other backbones nor `predict` matter: validation always takes one view.
        unread = {**_NO_EFFECT, "backbones": True, "predict": True, "init_from": True}
        own = self.backbone(backbone).model_dump_json(exclude={"weights"})
        return own + self.model_dump_json(exclude=unread) + self._adapting_batch()


class InferSettings(LearningSettings):
    """The configuration of infer, and of every step that may predict."""

    embeddings: EmbeddingsConfig

    def unsphered(self) -> Self:
        """These settings without sphering, which starts from the finished embeddings and so repeats nothing."""
        plain = self.embeddings.model_copy(update={"sphering": "none", "shrinkage": 0.0})
        return self.model_copy(update={"embeddings": plain})

    def fingerprint(self) -> str:
        """The fields that affect what a predicting step writes, as JSON for a work key, with the column of labels in its tables."""
        return self.model_dump_json(exclude=_NO_EFFECT) + self.screen.label_column


class MeanTeacherSettings(InferSettings):
    """The configuration of finetune and pseudo_label."""

    mean_teacher: MeanTeacherConfig

    def fingerprint(self) -> str:
        """The fields that affect pseudo_label's result, as JSON; the step adds the content of fused labels."""
        return self.model_dump_json(exclude={**_NO_EFFECT, "mean_teacher": {"fused_labels"}}) + self.screen.label_column

    def finetune_fingerprint(self) -> str:
        """The fields that affect finetune's weights, as JSON; not how they predict, nor the pseudo-labels of the next step."""
        later = {"confident_fractions", "pseudo_label_weight", "pseudo_label_passes", "pseudo_label_blend"}
        later |= {"refresh_epochs", "fused_labels", "confident_by", "pseudo_label_choice"}
        if self.mean_teacher.pseudo_labels != "none":
            later |= {"pseudo_labels"}  # but `selection` counts, because validation uses it
        unread: dict[str, Any] = {**_NO_EFFECT, "predict": True, "embeddings": True, "mean_teacher": later}
        return self.model_dump_json(exclude=unread) + self._adapting_batch()
