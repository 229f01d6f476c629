"""The part of a run's configuration that the training steps read, and what of it decides their results. Pure pydantic."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

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
    "components.core.screen.site_table",
    "components.core.storage.logits",
    "components.core.storage.manifest",
)
"""Sources that a training step's result depends on, besides the step's own."""

PREDICTING_CODE = ("components.core.storage.embeddings",)
"""Sources beside TRAINING_CODE that the result of a step that predicts depends on."""

LIBRARIES = ("numpy", "scipy", "timm", "torch")
"""Libraries whose version decides a training step's numbers."""


def library_versions() -> str:
    """The installed versions of LIBRARIES, as one text for a key."""
    return " ".join(f"{name}=={version(name)}" for name in LIBRARIES)


class LearningSettings(FrozenModel):
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

    def adapting_batch(self) -> str:
        """The batch size of inference where it decides validation: AdaBN measures a domain batch by batch."""
        return "" if self.batch_norm.domain == "none" else f"batches of {self.predict.batch_size}"

    def fingerprint(self) -> str:
        """The settings that decide the result, as JSON; memory limits do not, and initial weights act through pretrain.

        What `compute` decides is told by precision.arithmetic, as it turns out on the machine.
        """
        return self.model_dump_json(exclude={"loader": True, "compute": True, "backbones": {"__all__": {"weights"}}})


class PretrainSettings(LearningSettings):
    """What pretrain reads."""

    pretrain: PretrainConfig
    init_from: str | None = None

    def fingerprint_of(self, backbone: str) -> str:
        """What decides the weights of one backbone, as JSON: other backbones, and how the result predicts, do not.

        A run that it starts from counts by its weights' content, which the step adds.
        """
        own = self.backbone(backbone).model_dump_json()
        # Validation takes one view of the student's weights whatever `predict` says.
        unread = {"loader", "compute", "backbones", "predict", "init_from"}
        return own + self.model_dump_json(exclude=unread) + self.adapting_batch()


class PredictingSettings(LearningSettings):
    """What every step reads that may end training with a prediction."""

    embeddings: EmbeddingsConfig


class MeanTeacherSettings(PredictingSettings):
    """What finetune and pseudo_label read."""

    mean_teacher: MeanTeacherConfig

    def fingerprint(self) -> str:
        """As every step's; fused labels count by their content and not by their place."""
        return self.model_dump_json(
            exclude={
                "loader": True,
                "compute": True,
                "backbones": {"__all__": {"weights"}},
                "mean_teacher": {"fused_labels"},
            }
        )

    def finetune_fingerprint(self) -> str:
        """What decides finetune's weights, as JSON: how they predict afterwards, and pseudo-labels to come, do not."""
        later = {
            "confident_fractions",
            "pseudo_label_weight",
            "pseudo_label_passes",
            "pseudo_label_blend",
            "refresh_epochs",
            "fused_labels",
        }
        if self.mean_teacher.pseudo_labels != "none":
            later |= {"pseudo_labels"}  # of what kind they will be; `selection` counts, for validation is by it
        unread: dict[str, Any] = {
            "loader": True,
            "compute": True,
            "predict": True,
            "embeddings": True,
            "backbones": {"__all__": {"weights"}},
        }
        return self.model_dump_json(exclude={**unread, "mean_teacher": later}) + self.adapting_batch()


class InferSettings(PredictingSettings):
    """What infer reads."""
