"""The manifest of a published model: everything that predicting new plates and comparing models needs. Pure data (pydantic).

models/FINGERPRINT/manifest.json          written last: the model is complete
models/FINGERPRINT/ATTEMPT/weights/...    networks, safetensors
models/FINGERPRINT/ATTEMPT/metrics.json, config.yaml, card.md
models/FINGERPRINT/ATTEMPT/plates.json    the plates that the networks saw, without their wells

The manifest names the ATTEMPT of the publisher that finished first.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from components.core.config import RunConfig, parse
from components.core.storage.finished import StoredFile
from components.core.storage.manifest import PixelType, PlateDesign, Vocabulary
from components.core.storage.run_records import Learned
from components.core.stored_record import StoredRecord

MODELS = "models"
MANIFEST = "manifest.json"
METRICS, CONFIG, CARD, PLATES = "metrics.json", "config.yaml", "card.md", "plates.json"
FINGERPRINT = r"[0-9a-f]{64}"
SHORT = 12
"""Digits of a fingerprint that people are shown."""


class NetworkFile(StoredFile):
    """The weights of one network; `path` is relative to the model's attempt."""

    fold: int
    cell_type: str | None = Field(description="that it classifies; None for all, if training ended with pretrain")
    backbone: str


class ModelManifest(StoredRecord):
    """One model: the networks of all folds and cell types of a run."""

    KIND = "model's manifest"
    IF_DAMAGED = "publish its run again (`cellsignal models publish RUN --repair`)"

    schema_version: int = Field(3, ge=1, description="version of the record's format")
    fingerprint: str = Field(pattern=f"^{FINGERPRINT}$", description="digest of all that determines the model")
    attempt: str = Field(pattern=r"^[0-9a-f]{32}$", description="folder of its files")
    name: str = Field(description="of the run's configuration")
    created: datetime
    run: str = Field(description="key of the run that trained it")
    store: str = Field(description="address of the store that has the run's record")
    code_version: str
    lineage: dict[str, Any] = Field(description="the run's, as recorded at its start")
    config: dict[str, Any] = Field(description="the run's whole configuration")
    screen: str = Field(description="digest of the training screen's manifest")
    channels: tuple[str, ...] = Field(description="names, in the order of the networks' input")
    image_shape: tuple[int, int] = Field(description="height and width of the images, pixels")
    dtype: PixelType = Field(description="type of the packed pixels")
    cell_types: tuple[str, ...]
    folds: dict[str, tuple[int, ...]] = Field(description="folds that have networks, by cell type")
    backbones: tuple[str, ...]
    predicted_by: Literal["student", "teacher", "pretrained"] = Field(description="which weights these are")
    vocabulary: Vocabulary
    design: PlateDesign | None = Field(description="None if the screen has none, or prior.enabled is false")
    temperatures: dict[str, dict[str, float]] = Field(
        description="of confidences, fitted out of fold, by cell type: raw, group, balanced, and balanced_N of plates with N "
        "wells; 1 if not fitted"
    )
    experiment_folds: dict[str, int] = Field(
        description="fold by labelled experiment, for folds.known of the next run; empty if folds are of wells"
    )
    taught: Learned = Field(description="treatment labels that any of its networks learned, including earlier runs'")
    unlabelled: tuple[str, ...] = Field(description="experiments whose images were trained on without labels")
    held_out: tuple[str, ...] = Field(description="experiments that no training step read")
    partial: bool = Field(description="whether folds are missing that the configuration trains")
    scores: dict[str, dict[str, dict[str, float]]] = Field(
        description="well top-1 by score (out_of_fold, unlabelled, holdout), stage and cell type or overall"
    )
    files: tuple[StoredFile, ...] = Field(description="metrics.json, config.yaml, card.md, plates.json")
    networks: tuple[NetworkFile, ...]

    @model_validator(mode="after")
    def _below_the_attempt(self) -> Self:
        for file in (*self.files, *self.networks):
            if file.path.startswith("/") or ".." in PurePosixPath(file.path).parts:
                raise ValueError(f"impossible path {file.path!r}")
        return self

    @property
    def short(self) -> str:
        """The fingerprint as people are shown it."""
        return self.fingerprint[:SHORT]

    @property
    def learned_from(self) -> frozenset[str]:
        """Experiments whose labels affected the model, including those of the runs it started from.

        The labels of a missing fold taught no network, but they selected checkpoints and are in the plate design.
        """
        return frozenset({*self.taught.experiments, *self.taught.wells, *self.experiment_folds})

    def key(self, path: str) -> str:
        """The key of one of its files in the store."""
        return f"{MODELS}/{self.fingerprint}/{self.attempt}/{path}"

    def run_config(self) -> RunConfig:
        """The run's configuration; InputError if it is of another version of cellsignal."""
        return parse(RunConfig, self.config, source=f"model {self.short}: configuration")

    def folds_of(self, cell_type: str) -> tuple[int, ...]:
        """The folds whose networks can classify wells of a cell type, ascending; empty if none can.

        If training ended with pretrain, each network learned all cell types, and can be applied to another one.
        """
        if cell_type in self.folds or any(network.cell_type is not None for network in self.networks):
            return self.folds.get(cell_type, ())
        return tuple(sorted({network.fold for network in self.networks}))
