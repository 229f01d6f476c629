"""Weights on disk as safetensors, written whole or not at all. torch only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.core.errors import InputError, StepError


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes parameters and buffers as safetensors, by a temporary name and a rename.

    Raises:
        StepError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    tensors: dict[str, Tensor] = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    try:
        save_file(tensors, str(partial), metadata=dict(metadata or {}))
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        raise StepError(f"{path}: cannot be written ({reason}); make room and run again") from None
    partial.rename(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Reads weights into a network of the same architecture.

    Raises:
        InputError: no such file, not safetensors, or tensors of another architecture.
    """
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read the weights ({' '.join(str(error).split())})") from None
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        given = tuple(tensors[name].shape) if name in tensors else "nothing"
        expected = tuple(own[name].shape) if name in own else "nothing"
        if given != expected:
            raise InputError(f"{path}: weights of another architecture ({name}: expected {expected}, got {given})")
    module.load_state_dict(tensors)
