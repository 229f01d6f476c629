"""Ends a training whose loss or weights are no longer finite, on all processes together. torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from components.core.errors import InputError
from components.core.learning.team import Team


class DivergenceCheck:
    """Raises InputError if a training has diverged.

    It waits for the device, so it is called where the training waits anyway: at the end of an epoch and before a checkpoint.

    Args:
        networks: the networks in training, by name.
        team: the processes that train them.
        rate: the configuration's field of the learning rate.
        bfloat16: whether backbones compute in bfloat16.
    """

    def __init__(self, networks: Mapping[str, nn.Module], team: Team, rate: str, bfloat16: bool) -> None:
        self._networks, self._team = networks, team
        more = ", or set compute.precision to float32" if bfloat16 else ""
        self._advice = f"lower {rate}{more}"

    def __call__(self, where: str, losses: Tensor | None = None) -> None:
        """Checks an epoch's losses, one of each step, and all weights; every process must call it.

        Raises:
            InputError: with the first step whose loss is not finite, or the network whose weights are not.
        """
        step, steps = (0, 0) if losses is None else (_first_not_finite(losses), len(losses))
        bad = [not is_finite(network) for network in self._networks.values()]
        # One process may see a loss that is not finite before the others do.
        found = np.array(self._team.gathered([step, *(0 if each else 1 for each in bad)])).min(0)
        if found[0] < steps:
            raise InputError(f"{where}: the loss of step {found[0] + 1} of {steps} is not finite; {self._advice}")
        for name, finite in zip(self._networks, found[1:], strict=True):
            if not finite:
                raise InputError(f"{where}: a weight of {name} is not finite; {self._advice}")


def _first_not_finite(losses: Tensor) -> int:
    """Index of the first value that is not finite; their number if all are."""
    finite = losses.isfinite().cpu().numpy()
    return int(np.append(finite, False).argmin())


def is_finite(network: nn.Module) -> bool:
    """Whether all parameters and buffers are finite; one exchange with the device."""
    return are_finite([*network.parameters(), *network.buffers()])


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values of tensors on one device are finite."""
    found = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(found).all()) if found else True
