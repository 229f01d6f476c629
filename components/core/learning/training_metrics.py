"""What is measured during training: the loss and speed of an epoch, and the best weights so far. torch only."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from components.core.learning.images import Images


class BestWeights:
    """The weights of networks at their best score so far; ties keep the earlier ones."""

    def __init__(self, *networks: nn.Module) -> None:
        self._networks = networks
        self._score = -math.inf
        self._weights: list[dict[str, Any]] = []

    def improved(self, score: float) -> bool:
        """Whether the score is a new best; if so, keeps it and the present weights."""
        if not score > self._score:
            return False
        self._score, self._weights = score, [deepcopy(network.state_dict()) for network in self._networks]
        return True

    def load(self) -> None:
        """Restores the networks' best weights; without a score they stay as they are."""
        for network, weights in zip(self._networks, self._weights, strict=False):
            network.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        """The best score and weights so far."""
        return {"score": float(self._score), "weights": self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self._score, self._weights = state["score"], state["weights"]


class EpochMeter:
    """Loss, speed, share of time spent waiting for data, and peak memory of an epoch, which may be interrupted and resumed.

    Attributes:
        done: optimiser steps done.
        losses: this process's share of each step's loss, on the device; 0 for steps to come.
    """

    def __init__(self, images: Images, steps: int) -> None:
        self.done = 0
        self._images = images
        self.losses = torch.zeros(steps, device=images.device)
        self._seconds, self._waited, self._sites = 0.0, 0.0, 0
        self._begun: tuple[float, float] | None = None

    def start(self) -> None:
        """Starts the clock."""
        self._begun = time.monotonic() - self._seconds, self._images.loader.waited - self._waited
        if self._images.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._images.device)

    def add(self, loss: Tensor, sites: int) -> None:
        """Adds a part of the current step: its weighted loss, and the sites that this process trained on."""
        self.losses[self.done] += loss.detach()
        self._sites += sites

    def _elapsed(self) -> tuple[float, float]:
        """Seconds, and seconds waited, of all parts of the epoch."""
        if self._begun is None:
            return self._seconds, self._waited
        return time.monotonic() - self._begun[0], self._images.loader.waited - self._begun[1]

    def measured(self) -> dict[str, float]:
        """The epoch's figures; waits for the device, and every process must call it.

        Returns:
            loss: mean over the steps. sites_per_s: sites of all processes per second. seconds. data_wait: share of the seconds
            in which this process waited for pixels. peak_memory_gib: of the GPU during the epoch, or without GPU of this
            process since its start.
        """
        own = (
            self.losses.mean(0, keepdim=True).cpu().numpy()
        )  # waits, so that the seconds include all of the device's work
        seconds, waited = self._elapsed()
        team = self._images.team
        if self._images.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._images.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            # Losses are weighted so that the mean over processes is that of the batch.
            "loss": float(team.summed(own)[0]) / team.size,
            "sites_per_s": self._sites * team.size / seconds,
            "seconds": seconds,
            "data_wait": min(1.0, waited / seconds),
            "peak_memory_gib": round(peak / 2**30, 3),
        }

    def state(self) -> dict[str, Any]:
        """The epoch so far; every process must call it."""
        losses = self._images.team.gathered(self.losses.cpu())
        return {"done": self.done, "losses": losses, "measured": [*self._elapsed(), self._sites]}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.done = state["done"]
        self.losses = state["losses"][self._images.team.rank].to(self._images.device)
        self._seconds, self._waited, self._sites = state["measured"]
