"""The networks of a run that predict: in which finished outputs they lie, and whether a file holds what it should. No torch.

A run that ends with pseudo_label or finetune has a network of each fold, cell type and backbone, one that ends with
pretrain a network of each fold and backbone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from components.core.config import BackboneConfig, RunConfig
from components.core.errors import InputError
from components.core.storage.interface import MissingObjectError, ObjectWriter
from components.core.storage.run_record import RUNS, FoldRecord, Learned, StepRecord

OUTPUT = "weights"
"""The output of pretrain, finetune and pseudo_label that holds their networks."""
_LARGEST_HEADER = 100_000_000  # bytes, the format's limit


@dataclass(frozen=True)
class SourceFile:
    """Where a network lies.

    Attributes:
        fold: of the network.
        cell_type: whose wells it names; None for all.
        backbone: its name.
        place: finished outputs of the step that trained it.
        path: of the file in there.
    """

    fold: int
    cell_type: str | None
    backbone: str
    place: str
    path: str

    @property
    def name(self) -> str:
        """Its path among a model's weights, and what people are told."""
        return "/".join(part for part in (str(self.fold), self.cell_type, f"{self.backbone}.safetensors") if part)


def predicted_by(config: RunConfig) -> Literal["student", "teacher", "pretrained"]:
    """Whose weights predict in a run."""
    return config.predict.weights if config.mean_teacher.enabled else "pretrained"


def weight_files(
    store: ObjectWriter, key: str, config: RunConfig, screen: str, folds: Mapping[str, Sequence[FoldRecord]]
) -> list[SourceFile]:
    """The networks of a run's finished folds.

    Args:
        store: where the run's records are.
        key: of the run.
        config: of the run.
        screen: digest of its manifest.
        folds: finished ones by cell type.

    Raises:
        InputError: a step's record is missing, damaged, or of an earlier screen.
    """
    found: dict[str, SourceFile] = {}
    for cell_type, records in folds.items():
        for record in records:
            for backbone in (each.name for each in config.backbones):
                if config.has_pseudo_labels:
                    place, of, path = record.place, cell_type, f"{backbone}.{config.predict.weights}.safetensors"
                elif config.mean_teacher.enabled:
                    place = _record(store, key, f"finetune/{record.fold}/{cell_type}", screen).place
                    of, path = cell_type, f"{backbone}.{config.predict.weights}.safetensors"
                else:
                    place = _record(store, key, f"pretrain/{record.fold}/{backbone}", screen).place
                    of, path = None, "weights.safetensors"
                file = SourceFile(record.fold, of, backbone, place, path)
                found[file.name] = file
    return list(found.values())


def learned_labels(
    store: ObjectWriter, key: str, config: RunConfig, screen: str, folds: Mapping[str, Sequence[FoldRecord]]
) -> Learned:
    """Whose treatment labels any network of the finished folds has learned, those of earlier runs included.

    Raises:
        InputError: as weight_files.
    """
    learned = Learned()
    for fold in sorted({record.fold for records in folds.values() for record in records}):
        for backbone in config.backbones:
            learned |= _record(store, key, f"pretrain/{fold}/{backbone.name}", screen).learned
    return learned


def tensor_shapes(path: Path, said: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, by its header alone.

    Args:
        path: of the file.
        said: what errors call it; empty for its path.

    Raises:
        InputError: not such a file, or cut short.

    Source: https://huggingface.co/docs/safetensors (format).
    """
    said = said or str(path)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(length)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except OSError as error:
        raise InputError(f"{said}: cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InputError(f"{said}: not a safetensors file") from None
    if path.stat().st_size != 8 + length + end:
        raise InputError(f"{said}: cut short")
    return shapes


def check_architecture(
    shapes: Mapping[str, tuple[int, ...]], backbone: BackboneConfig, classes: int, channels: int, said: str
) -> None:
    """Refuses weights of another network, as far as it can be told without building it; loading them tells the rest.

    Args:
        shapes: of the file's tensors, see tensor_shapes.
        backbone: that they should be of; a timm model's classifier alone is known here.
        classes: of the screen's vocabulary.
        channels: of its images.
        said: what the file is, for the error.

    Raises:
        InputError: a tensor is missing, or has another shape.
    """
    head = shapes.get("head.weight", ())
    if len(head) != 2 or head[0] != classes:
        raise InputError(
            f"{said}: weights of another architecture (head.weight: expected {classes} classes, got {head})"
        )
    if backbone.kind != "xception":
        return
    for name, expected in _xception(backbone, classes, channels).items():
        given = shapes.get(name)
        if given != expected:
            raise InputError(
                f"{said}: weights of another architecture ({name}: expected {expected or 'nothing'}, got {given or 'nothing'})"
            )


def _xception(backbone: BackboneConfig, classes: int, channels: int) -> dict[str, tuple[int, ...] | None]:
    """The tensors of learning.xception that show its widths and depth."""
    a, b, c = backbone.exit
    width = backbone.entry[-1]
    known: dict[str, tuple[int, ...] | None] = {
        "backbone.stem.0.weight": (backbone.stem, channels, 7, 7),
        "backbone.stem.3.weight": (backbone.entry[0], backbone.stem, 3, 3),
        f"backbone.middle.{backbone.middle_blocks}.body.1.0.weight": None,
        "backbone.exit.0.shortcut.0.weight": (a, width, 1, 1),
        "backbone.exit.1.1.weight": (b, a, 1, 1),
        "backbone.exit.4.1.weight": (c, b, 1, 1),
        "head.weight": (classes, c),
    }
    for k, (inputs, outputs) in enumerate(pairwise(backbone.entry)):
        known[f"backbone.entry.{k}.shortcut.0.weight"] = (outputs, inputs, 1, 1)
    if backbone.middle_blocks:
        known[f"backbone.middle.{backbone.middle_blocks - 1}.body.1.0.weight"] = (width, 1, 3, 3)
    return known


def _record(store: ObjectWriter, key: str, name: str, screen: str) -> StepRecord:
    path = f"{RUNS}/{key}/steps/{name}.json"
    try:
        record = StepRecord.model_validate_json(store.get(path))
    except (MissingObjectError, ValidationError):
        raise InputError(f"{store.uri(path)}: missing or damaged; run {key} again") from None
    if record.screen != screen:
        raise InputError(
            f"{store.uri(path)}: of an earlier screen than the run's present one; run {key} again to its end"
        )
    return record
