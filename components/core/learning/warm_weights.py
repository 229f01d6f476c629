"""Puts an earlier run's pretrained weights into a network whose screen may have other siRNAs. torch only.

E embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from components.core.errors import InputError
from components.core.learning.initial_weights import read_tensors
from components.core.learning.network import Classifier
from components.core.storage.source_run import OPTION

_SHOWN = 4


@dataclass(frozen=True)
class TakenOver:
    """What became of the classes.

    Attributes:
        known: siRNAs of both screens, whose rows of the head were taken over.
        new: siRNAs of this screen alone, whose rows start at random.
        left_out: siRNAs of the earlier screen alone.
    """

    known: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]

    def sentence(self, backbone: str, source: str) -> str:
        """What to tell the user, on one line."""
        parts = [f"{backbone}: starts from {source}; {len(self.known)} classes keep their rows of the head"]
        for what, names in (("start at random", self.new), ("are left out", self.left_out)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})")
        return ", ".join(parts)


def take_over(network: Classifier, file: Path, then: Sequence[str], now: Sequence[str], source: str) -> TakenOver:
    """Overwrites a network's random weights: the backbone whole, the head row by row of the siRNAs that both screens have.

    Args:
        network: of the new run, random; unchanged where an error is raised.
        file: weights.safetensors of the earlier run.
        then: labels of the earlier classes, in class order.
        now: labels of the network's classes, in class order.
        source: how the user named the weights.

    Raises:
        InputError: the file cannot be read, or holds another architecture.
    """
    given, own = read_tensors(file), dict(network.state_dict())
    places = {label: k for k, label in enumerate(then)}
    rows_now = [k for k, label in enumerate(now) if label in places]
    rows_then = [places[now[k]] for k in rows_now]
    values = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    expected = {name: (len(then), *shape[1:]) if name.startswith("head.") else shape for name, shape in shapes.items()}
    for name in sorted(own.keys() | given.keys()):
        found = tuple(given[name].shape) if name in given else None
        if expected.get(name) != found:
            raise InputError(
                f"{OPTION}: {source} is of another architecture (tensor {name}: expected {expected.get(name)}, got {found}); "
                "make the backbones the same"
            )
        values[name] = given[name]
        if name.startswith("head."):
            values[name] = own[name].clone()
            values[name][torch.tensor(rows_now, dtype=torch.long)] = given[name][rows_then].to(own[name].dtype)
    network.load_state_dict(values)
    kept = {now[k] for k in rows_now}
    return TakenOver(
        tuple(now[k] for k in rows_now),
        tuple(label for label in now if label not in kept),
        tuple(label for label in then if label not in kept),
    )
