"""Trained weights on disk: a network's safetensors, and the folders that pretrain and finetune write. torch only."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from components.core.config import BackboneConfig
from components.core.errors import InputError
from components.core.files import write_atomically
from components.core.learning.divergence import are_finite
from components.core.learning.mean_teacher import Pair
from components.core.learning.network import Classifier
from components.core.learning.step_settings import LearningSettings
from components.core.storage.digests import digest_file

CONTAINERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
"""Keys under which training programs save a state dict next to other data."""


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes parameters and buffers as safetensors, atomically; OSError if the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    write_atomically(path, save(tensors))


def load_weights(module: nn.Module, path: Path) -> None:
    """Reads weights into a network of the same architecture.

    Raises:
        InputError: the file cannot be read, has another architecture, or a value that is not finite.
    """
    tensors = read_tensors(path)
    check_tensors(str(path), tensors, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
    module.load_state_dict(tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file; code in it is never run.

    Raises:
        InputError: the file does not exist, is damaged, or contains something else than tensors.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the weights file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(str(path)))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: not a file of plain tensors; save only the state dict, preferably as .safetensors"
        ) from None
    except Exception as error:  # an unpickler may raise anything on bytes that are no state dict
        raise InputError(f"{path}: cannot read the weights ({' '.join(str(error).split())})") from None
    while isinstance(content, dict) and not _is_state_dict(content):
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    if not _is_state_dict(content):
        raise InputError(
            f"{path}: contains no state dict (names and tensors), neither at its top level nor under {', '.join(CONTAINERS)}"
        )
    return dict(content)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def check_tensors(source: str, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError with the source and the first tensor that is missing, unknown, of another shape or not finite."""
    for name in sorted(expected.keys() | tensors.keys()):
        given = tuple(tensors[name].shape) if name in tensors else "nothing"
        if given != expected.get(name, "nothing"):
            raise InputError(
                f"{source}: weights of another architecture ({name}: expected {expected.get(name, 'nothing')}, got {given})"
            )
        if not are_finite([tensors[name]]):
            raise InputError(f"{source}: tensor {name} has a value that is not finite; train these weights again")


def load_network(
    path: Path,
    backbone: BackboneConfig,
    settings: LearningSettings,
    classes: int,
    images: tuple[int, int, int],
    device: torch.device,
) -> Classifier:
    """A trained network on its device, for `images` as `network_input` gives them; raises as `load_weights`."""
    network = Classifier(backbone, settings.head, classes, *images)
    load_weights(network, path)
    return network.to(device).to(memory_format=torch.channels_last)


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta.json of a folder of weights: fold, cell_type, and for pretrain's output backbone.

    Raises:
        InputError: not a folder of weights, or a damaged one.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: cannot be read; give an output folder of pretrain or finetune") from None
    if not isinstance(meta, dict) or "fold" not in meta or "cell_type" not in meta:
        raise InputError(f"{path}: has no fold and cell type; give an output folder of pretrain or finetune")
    return meta


def load_pretrained(
    bases: Sequence[Path],
    fold: int,
    settings: LearningSettings,
    classes: int,
    images: tuple[int, int, int],
    device: torch.device,
) -> tuple[dict[str, Classifier], list[dict[str, Any]]]:
    """The networks that pretrain wrote, by backbone in the configured order, and the records of their epochs.

    Raises:
        InputError: weights of another fold or architecture, or not exactly one of each backbone.
    """
    found: dict[str, Path] = {}
    for base in bases:
        meta = read_meta(base)
        if meta["fold"] != fold:
            raise InputError(f"{base}: weights of fold {meta['fold']}, expected fold {fold}")
        if "backbone" not in meta:
            raise InputError(f"{base}: not one backbone's weights; give pretrain's output")
        found[meta["backbone"]] = base
    names = [backbone.name for backbone in settings.backbones]
    if sorted(found) != sorted(names):
        raise InputError(f"pretrained backbones {sorted(found)} do not match the configured ones {sorted(names)}")
    networks = {
        backbone.name: load_network(
            found[backbone.name] / "weights.safetensors", backbone, settings, classes, images, device
        )
        for backbone in settings.backbones
    }
    return networks, [record for name in names for record in json.loads((found[name] / "history.json").read_text())]


def check_finetuned(base: Path, fold: int, cell_type: str) -> None:
    """Raises InputError for pairs of another fold or cell type, which may have learned this fold's labels."""
    meta = read_meta(base)
    if (meta["fold"], meta["cell_type"]) != (fold, cell_type):
        raise InputError(
            f"{base}: weights of fold {meta['fold']} and {meta['cell_type']}, expected fold {fold} and {cell_type}"
        )


def base_folders(bases: Iterable[str]) -> list[Path]:
    """The folders of trained weights; one that holds nothing but such folders, of each backbone one, counts as these."""
    found: list[Path] = []
    for base in map(Path, bases):
        below = sorted(base.iterdir()) if base.is_dir() else []
        found += below if below and all((each / "meta.json").exists() for each in below) else [base]
    return found


def weights_digest(folder: Path) -> str:
    """Digest of a folder's weights and meta.json, without its history, which contains timings."""
    read_meta(folder)
    files = sorted([*folder.glob("*.safetensors"), folder / "meta.json"])
    return " ".join(f"{path.name}={digest_file(path)}" for path in files)


def save_pairs(pairs: Sequence[Pair], folder: Path, epoch: int, history: list[dict[str, Any]], **meta: Any) -> None:
    """Writes `BACKBONE.student.safetensors`, `BACKBONE.teacher.safetensors`, history.json and meta.json.

    `epoch` counts the epochs trained so far, `history` has the records of all, pretraining included; `meta` joins meta.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        save_weights(pair.student, folder / f"{pair.name}.student.safetensors")
        save_weights(pair.teacher, folder / f"{pair.name}.teacher.safetensors")
    (folder / "history.json").write_text(json.dumps(history))
    steps = {pair.name: pair.step for pair in pairs}
    (folder / "meta.json").write_text(json.dumps({**meta, "epoch": epoch, "steps": steps}))


def load_pairs(
    folder: Path, settings: LearningSettings, classes: int, images: tuple[int, int, int], device: torch.device
) -> tuple[list[Pair], list[dict[str, Any]]]:
    """The pairs of the configured backbones that save_pairs wrote, and the history.

    Raises:
        InputError: weights are missing or have another architecture.
    """
    meta = read_meta(folder)
    pairs = []
    for backbone in settings.backbones:
        student, teacher = (
            load_network(folder / f"{backbone.name}.{role}.safetensors", backbone, settings, classes, images, device)
            for role in ("student", "teacher")
        )
        teacher.requires_grad_(False)
        pairs.append(Pair(backbone.name, student, teacher, meta["steps"][backbone.name]))
    return pairs, json.loads((folder / "history.json").read_text())
