"""Students and teachers of a fold and cell type on disk: one folder, safetensors and JSON. torch only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from components.core.learning.checkpoints import load_weights, save_weights
from components.core.learning.mean_teacher import Pair
from components.core.learning.network import Classifier
from components.core.learning.step_settings import LearningSettings
from components.core.storage.digests import digest_path


def weights_digest(folder: Path) -> str:
    """Digest of a folder's weights and of what they are, without the timings that its history holds."""
    return " ".join(
        f"{path.name}={digest_path(path)}" for path in sorted([*folder.glob("*.safetensors"), folder / "meta.json"])
    )


def save_pairs(pairs: Sequence[Pair], folder: Path, epoch: int, history: list[dict[str, Any]], **meta: Any) -> None:
    """Writes `BACKBONE.student.safetensors`, `BACKBONE.teacher.safetensors`, history.json and meta.json.

    Args:
        pairs: one of each backbone.
        folder: created.
        epoch: epochs trained so far.
        history: records of all epochs, pretraining included.
        **meta: what else the next step or a reader wants to know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        save_weights(pair.student, folder / f"{pair.name}.student.safetensors")
        save_weights(pair.teacher, folder / f"{pair.name}.teacher.safetensors")
    (folder / "history.json").write_text(json.dumps(history))
    steps = {pair.name: pair.step for pair in pairs}
    (folder / "meta.json").write_text(json.dumps({**meta, "epoch": epoch, "steps": steps}))


def load_pairs(
    folder: Path, settings: LearningSettings, classes: int, channels: int, device: torch.device
) -> tuple[list[Pair], list[dict[str, Any]]]:
    """Reads what save_pairs wrote, for the configured backbones; with it the history.

    Raises:
        InputError: weights missing or of another architecture.
    """
    meta = json.loads((folder / "meta.json").read_text())
    pairs = []
    for backbone in settings.backbones:
        networks = []
        for role in ("student", "teacher"):
            network = Classifier(backbone, settings.head, classes, channels)
            load_weights(network, folder / f"{backbone.name}.{role}.safetensors")
            networks.append(network.to(device).to(memory_format=torch.channels_last))
        student, teacher = networks
        teacher.requires_grad_(False)
        pairs.append(Pair(backbone.name, student, teacher, meta["steps"][backbone.name]))
    return pairs, json.loads((folder / "history.json").read_text())
