"""What is known of a published model: all that predicting new plates, and comparing it with another, needs. Pure data (pydantic).

models/FINGERPRINT/manifest.json          written last: the model is whole
models/FINGERPRINT/ATTEMPT/weights/...    networks, safetensors
models/FINGERPRINT/ATTEMPT/metrics.json, config.yaml, card.md, plates.json

ATTEMPT is of whoever published first; the manifest names it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from components.core.config import FrozenModel, RunConfig, parse
from components.core.errors import InputError
from components.core.screen.wells import experiment_of
from components.core.storage.manifest import PlateDesign, Vocabulary
from components.core.storage.run_record import Learned
from components.core.storage.stored_file import StoredFile

SCHEMA = 1
MODELS = "models"
MANIFEST = "manifest.json"
METRICS, CONFIG, CARD, PLATES = "metrics.json", "config.yaml", "card.md", "plates.json"
FINGERPRINT = r"[0-9a-f]{64}"
SHORT = 12
"""Digits of a fingerprint that people are shown."""


class TrainedPlate(FrozenModel):
    """A plate that the networks saw, labelled or not; plates.json is a list of these."""

    experiment: str
    plate: int
    cell_type: str
    labelled: bool
    histograms: tuple[tuple[int, ...], ...] = Field(description="(channels, 256) pixel counts over all its sites")


class NetworkFile(StoredFile):
    """The weights of one network; `path` is below the model's attempt."""

    fold: int
    cell_type: str | None = Field(description="whose wells it names; None for all, where training ended with pretrain")
    backbone: str


class ModelManifest(FrozenModel):
    """One model: the networks of all folds and cell types of a run."""

    model_schema: int = SCHEMA
    fingerprint: str = Field(pattern=f"^{FINGERPRINT}$", description="digest of what decides the model")
    attempt: str = Field(pattern=r"^[0-9a-f]{32}$", description="folder of its files")
    name: str = Field(description="of the run's configuration")
    created: datetime
    run: str = Field(description="key of the run that trained it")
    store: str = Field(description="address of the store that the run is recorded in")
    code_version: str
    lineage: dict[str, Any] = Field(description="of the run, as far as it was known when it started")
    config: dict[str, Any] = Field(description="the run's whole configuration")
    screen: str = Field(description="digest of the manifest of the training screen")
    channels: int
    image_size: int
    cell_types: tuple[str, ...]
    folds: dict[str, tuple[int, ...]] = Field(description="folds that have networks, by cell type")
    backbones: tuple[str, ...]
    predicted_by: Literal["student", "teacher", "pretrained"] = Field(description="whose weights these are")
    vocabulary: Vocabulary
    design: PlateDesign | None = Field(description="None where the screen has none, or prior.enabled is false")
    temperatures: dict[str, dict[str, float]] = Field(
        description="of confidences, fitted out of fold: raw, group, balanced by cell type"
    )
    experiment_folds: dict[str, int] = Field(
        description="fold by labelled experiment, for folds.known of the next run; empty where wells are dealt to folds"
    )
    taught: Learned = Field(description="whose treatment labels any of its networks learned, earlier runs' included")
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
        """Experiments whose labels had a part in it, those of the runs that it started from included.

        Where not all folds were trained, what the others validate on taught no network, but selected checkpoints, fitted
        temperatures, and is in the plate design.
        """
        return frozenset({*self.taught.experiments, *map(experiment_of, self.taught.wells), *self.experiment_folds})

    def key(self, path: str) -> str:
        """The key of one of its files in the store."""
        return f"{MODELS}/{self.fingerprint}/{self.attempt}/{path}"

    def run_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            InputError: it is of another version of cellsignal.
        """
        return parse(RunConfig, self.config, source=f"model {self.short}: configuration")

    def score(self, score: str, stage: str, part: str = "overall") -> float | None:
        """Well top-1, None where the run has no such score."""
        return self.scores.get(score, {}).get(stage, {}).get(part)

    def folds_of(self, cell_type: str) -> tuple[int, ...]:
        """The folds whose networks may name wells of a cell type, ascending; empty where none may.

        Where training ended with pretrain, each network learned all cell types, and may be asked about another.
        """
        if cell_type in self.folds or any(network.cell_type is not None for network in self.networks):
            return self.folds.get(cell_type, ())
        return tuple(sorted({network.fold for network in self.networks}))

    def check_screen(
        self,
        channels: int,
        image_size: int,
        cell_types: Collection[str],
        said: str = "screen",
        any_cell_type: bool = False,
    ) -> None:
        """Refuses a screen that the networks cannot name.

        Args:
            channels: of its images.
            image_size: side of its images, pixels.
            cell_types: of its experiments.
            said: how the user named the screen.
            any_cell_type: whether networks that learned all cell types may name wells of another one.

        Raises:
            InputError: other channels or another image size, or a cell type without networks.
        """
        for what, own, given in (("channels", self.channels, channels), ("image size", self.image_size, image_size)):
            if own != given:
                raise InputError(
                    f"{said}: {what} {given}, but model {self.short} was trained with {own}; give images of the kind that it "
                    "knows, or train a model of these"
                )
        unknown = sorted(set(cell_types) - self.folds.keys())
        if not unknown:
            return
        lead = f"{said}: cell type {unknown[0]}, but model {self.short} knows {', '.join(self.folds)} alone"
        if not self.folds_of(unknown[0]):
            each = ", and has networks for each of them but none for all" if any_cell_type else ""
            raise InputError(f"{lead}{each}; leave its experiments out, or train a model with them")
        if not any_cell_type:
            raise InputError(
                f"{lead}; leave its experiments out, train a model with them, or ask its networks, which learned all of those, "
                "all the same (--any-cell-type)"
            )


def parse_model(content: bytes, where: str) -> ModelManifest:
    """A model's manifest.

    Args:
        content: of manifest.json.
        where: its address, for errors.

    Raises:
        InputError: of a newer schema, or damaged.
    """
    try:
        plain = json.loads(content)
        schema = int(plain["model_schema"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}: damaged, not a model's manifest") from None
    if schema > SCHEMA:
        raise InputError(
            f"{where}: model schema {schema} is newer than this version reads ({SCHEMA}); upgrade cellsignal"
        )
    try:
        return ModelManifest.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise InputError(f"{where}: damaged, not a model's manifest ({field}: {first['msg']})") from None
