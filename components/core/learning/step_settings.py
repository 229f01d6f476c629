"""The part of a run's configuration that the training steps read, and what of it decides their results. Pure pydantic."""

from __future__ import annotations

from importlib.metadata import version

from components.core.config import (
    AugmentConfig,
    BackboneConfig,
    BatchNormConfig,
    EmbeddingsConfig,
    Frozen,
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
    "components.core.screen.chunks",
    "components.core.screen.histograms",
    "components.core.screen.packed",
    "components.core.screen.site_table",
    "components.core.storage.logits",
    "components.core.storage.manifest",
)
"""Sources that a training step's result depends on, besides the step's own."""

LIBRARIES = ("numpy", "scipy", "timm", "torch")
"""Libraries whose version decides a training step's numbers."""


def library_versions() -> str:
    """The installed versions of LIBRARIES, as one text for a key."""
    return " ".join(f"{name}=={version(name)}" for name in LIBRARIES)


class LearningSettings(Frozen):
    """What every training step reads."""

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

    def backbone(self, name: str) -> BackboneConfig:
        """The backbone of this name.

        Raises:
            InputError: there is none.
        """
        for backbone in self.backbones:
            if backbone.name == name:
                return backbone
        raise InputError(f"backbone {name!r} is not configured; backbones are {[b.name for b in self.backbones]}")

    def fingerprint(self) -> str:
        """The settings that decide the result, as JSON; memory limits do not."""
        return self.model_dump_json(exclude={"loader"})


class PretrainSettings(LearningSettings):
    """What pretrain reads."""

    pretrain: PretrainConfig

    def fingerprint_of(self, backbone: str) -> str:
        """What decides the weights of one backbone, as JSON: other backbones, and how the result predicts, do not."""
        own = self.backbone(backbone).model_dump_json()
        # Validation takes one view of the student's weights whatever `predict` says.
        return own + self.model_dump_json(exclude={"loader", "backbones", "predict"})


class MeanTeacherSettings(LearningSettings):
    """What finetune and pseudo_label read."""

    mean_teacher: MeanTeacherConfig
    embeddings: EmbeddingsConfig

    def finetune_fingerprint(self) -> str:
        """What decides finetune's weights, as JSON: how they predict afterwards, and pseudo-labels to come, do not."""
        later = {
            "confident_fractions",
            "pseudo_label_weight",
            "pseudo_label_passes",
            "pseudo_label_blend",
            "refresh_epochs",
        }
        return self.model_dump_json(
            exclude={"loader": True, "predict": True, "embeddings": True, "mean_teacher": later}
        )


class InferSettings(LearningSettings):
    """What infer reads."""

    embeddings: EmbeddingsConfig
