"""Weights on disk as safetensors, written whole or not at all. torch only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from components.core.errors import InputError, StepError
from components.core.files import write_atomically


def save_weights(module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes parameters and buffers as safetensors, atomically.

    Raises:
        StepError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    try:
        write_atomically(path, save(tensors, metadata=dict(metadata or {})))
    except OSError as error:
        raise StepError(f"{path}: cannot be written ({error.strerror}); make room and run again") from None


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
