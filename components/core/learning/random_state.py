"""The random numbers of a training, and how they are put back to where they were: sites and order, views, layers. torch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator

from components.core.learning.micro_batches import Slots


def fold_seed(seed: int, fold: int) -> int:
    """The seed of a fold's trainings: another one for every fold of every run of up to 1,009 folds."""
    return seed * 1009 + fold


class RandomState:
    """All streams that a training draws from.

    Attributes:
        of_sites: order of wells and their sites, drawn at the start of an epoch and alike on all processes.
        of_views: views and jitter, one stream for each of this process's parts of a batch; on the CPU.

    Args:
        seed: of both.
        slots: the parts of a batch.
    """

    def __init__(self, seed: int | tuple[int, ...], slots: Slots) -> None:
        self.of_sites = np.random.default_rng(seed)
        # Where sites have a seed of several numbers, views are seeded by the first draw.
        views = seed if isinstance(seed, int) else int(self.of_sites.integers(2**62))
        self.of_views: list[Generator] = slots.generators(views)
        self._slots = slots
        if slots.team.size > 1:
            # Processes start with equal weights, and so from one seed; from here on each drops what it drops.
            torch.manual_seed(views + slots.team.rank)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Marks where an epoch's sites are drawn from: going on within it draws them again."""
        self._epoch = self.of_sites.bit_generator.state

    def state(self) -> dict[str, Any]:
        """Where all streams are; every process must ask."""
        return {
            "sites": self._epoch,
            "views": self._slots.states(self.of_views),
            "layers": self._slots.team.gathered(_of_layers()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts all streams back, that of the sites to the start of the epoch."""
        self.of_sites.bit_generator.state = state["sites"]
        self._slots.restore(self.of_views, state["views"])
        on_cpu, on_gpu = state["layers"][self._slots.team.rank]
        torch.set_rng_state(on_cpu)
        if on_gpu is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(on_gpu)
        self.begin_epoch()


def _of_layers() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Torch's own streams, from which drop-out and its like draw: of the CPU, and of this process's GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
