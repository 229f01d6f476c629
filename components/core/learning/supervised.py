"""pretrain: supervised training of one backbone on all cell types of a fold (Adam, step schedule, best checkpoint). torch only."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from components.core.config import ComputeConfig, PretrainConfig
from components.core.learning.augmentation import normal_view
from components.core.learning.checkpoints import Checkpoints, RandomState
from components.core.learning.inference import Images
from components.core.learning.network import Classifier, prepare
from components.core.learning.schedules import random_site_batches, step_rate, well_batches
from components.core.learning.team import (
    Replica,
    Slots,
    StatisticsOfParts,
    restore_statistics,
    running_statistics,
    statistics_of_all,
)
from components.core.learning.training_metrics import Best, EpochMeter, Validation


class SupervisedTraining:
    """A training that trains its network in place and can be interrupted after any step.

    Args:
        network: the network, on the images' device.
        images: the screen's images.
        wells: labelled training wells, rows of the well table.
        validation: the wells that select the checkpoint.
        config: schedule.
        seed: seed of sites, order and views.
        compute: precision, and parts of a batch.

    Attributes:
        history: one record per epoch: epoch, epochs, loss, accuracy, seconds_left, and what EpochMeter measures.
    """

    def __init__(
        self,
        network: Classifier,
        images: Images,
        wells: NDArray[np.intp],
        validation: Validation,
        config: PretrainConfig,
        seed: int,
        compute: ComputeConfig | None = None,
    ) -> None:
        compute = compute or ComputeConfig()
        prepare(network, compute, images.device)
        self._network, self._images, self._wells = network, images, wells
        self._validation, self._config = validation, config
        self._domain_W = images.batch_domains
        self._target_W = torch.from_numpy(images.table.class_W).long().to(images.device)
        self._optimiser = torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rates[0],
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._slots = Slots(images.team, compute.accumulate)
        self._slots.warn_of_small_parts(**{"pretrain.batch_size": config.batch_size})
        self._replica = Replica(network, self._slots)
        self._random = RandomState(seed, self._slots)
        self._best = Best()
        self._best_state: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        self._epoch = 0
        self._step = 0
        """optimiser steps done"""
        self._of_epoch = 0
        """steps of the current epoch done"""
        self._losses: torch.Tensor | None = None
        self._meter: EpochMeter | None = None
        self._measured: tuple[float, float, int] | None = None
        self._begun = time.monotonic()

    def run(
        self, report: Callable[[dict[str, Any]], None] = lambda _: None, checkpoints: Checkpoints | None = None
    ) -> None:
        """Trains, from the last checkpoint if there is one, and leaves the network at its best validated epoch.

        With selection `last`, or without validation wells, the network stays at the last epoch.

        Args:
            report: called with every epoch's record.
            checkpoints: where the state is saved by time; None saves none.
        """
        checkpoints = checkpoints or Checkpoints()
        saved = checkpoints.resume()
        if saved is not None:
            self.restore(saved)
        while self._epoch < self._config.epochs:
            report(self._run_epoch(checkpoints))
        if self._best_state is not None:
            self._network.load_state_dict(self._best_state)

    def _run_epoch(self, checkpoints: Checkpoints) -> dict[str, Any]:
        """Runs an epoch, or the rest of it; returns its record."""
        config, images, epoch = self._config, self._images, self._epoch
        rate = step_rate(epoch, config.learning_rates, config.milestones)
        of_wells = well_batches(self._wells, config.batch_size, self._random.of_sites, self._domain_W)
        batches = random_site_batches(images.table, of_wells, self._random.of_sites)
        if self._losses is None:
            self._losses = torch.zeros(len(batches), device=images.device)
        left = batches[self._of_epoch :]
        parts = [part for batch in left for part in self._slots.parts(batch)]
        # All targets of the epoch are copied to the device at once.
        sites_S = np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)
        target_S = self._target_W[torch.from_numpy(images.table.well_S[sites_S]).to(images.device)]
        targets = iter(torch.split(target_S, [len(part) for part in parts]))
        statistics = StatisticsOfParts([self._network], len(self._slots.own))
        meter = self._meter = EpochMeter(images, self._measured)
        self._network.train()
        taken = images.batches(parts, self._random.of_views)
        for batch in left:
            self._step += 1
            for group in self._optimiser.param_groups:
                group["lr"] = rate * min(1.0, self._step / max(1, config.warmup_steps))
            self._optimiser.zero_grad(set_to_none=True)
            size = self._slots.size(batch)
            with statistics.step() as part_of_step:
                for k, generator in enumerate(self._random.of_views):
                    sites, x = next(taken)
                    target_B = next(targets)
                    with part_of_step, self._replica.part(k):
                        logits_BK = self._replica(normal_view(x, images.augment, generator), target_B)
                        loss = F.cross_entropy(logits_BK, target_B) * self._slots.weight(len(sites), size)
                        loss.backward()  # type: ignore[no-untyped-call]
                    self._losses[self._of_epoch] += loss.detach()
                    meter.add(len(sites))
            self._optimiser.step()
            self._of_epoch += 1
            checkpoints.save_if_due(self.state)
        loss_mean = self._mean_loss()  # waits for the device, so that the seconds include all of its work
        measured = meter.measured()
        record = {
            "epoch": epoch + 1,
            "epochs": config.epochs,
            "loss": loss_mean,
            "accuracy": self._validate(),
            **measured,
        }
        self._epoch, self._of_epoch, self._losses, self._measured = epoch + 1, 0, None, None
        self._random.begin_epoch()
        record["seconds_left"] = (time.monotonic() - self._begun) / self._epoch * (config.epochs - self._epoch)
        self.history.append(record)
        return record

    def _mean_loss(self) -> float:
        assert self._losses is not None
        # Losses are weighted so that the mean over processes is that of the batch.
        team = self._images.team
        return float(team.summed(self._losses.mean(0, keepdim=True).cpu().numpy())[0]) / team.size

    def _validate(self) -> float | None:
        """Accuracy of the validation wells, or None if there are none or it is not time; keeps the best weights."""
        config, validation = self._config, self._validation
        last = self._epoch + 1 == config.epochs
        self._images.team.average_(running_statistics([self._network]))
        if not len(validation.wells) or ((self._epoch + 1) % config.validate_every and not last):
            return None
        accuracy = validation.accuracy(self._network, self._images)
        if config.selection != "last" and self._best.improved(accuracy):
            self._best_state = deepcopy(self._network.state_dict())
        return accuracy

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; every process must call it."""
        assert self._losses is not None
        return {
            "network": self._network.state_dict(),
            "statistics": statistics_of_all([self._network], self._images.team),
            "optimiser": self._optimiser.state_dict(),
            "random": self._random.state(),
            "epoch": self._epoch,
            "of_epoch": self._of_epoch,
            "step": self._step,
            "losses": self._images.team.gathered(self._losses.cpu()),
            "best": float(self._best.score),
            "best_state": self._best_state,
            "history": self.history,
            "measured": None if self._meter is None else self._meter.state(),
            "seconds": time.monotonic() - self._begun,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        team, device = self._images.team, self._images.device
        self._network.load_state_dict(state["network"])
        restore_statistics([self._network], state["statistics"], team)
        self._optimiser.load_state_dict(state["optimiser"])
        self._random.restore(state["random"])
        self._epoch, self._of_epoch, self._step = state["epoch"], state["of_epoch"], state["step"]
        self._losses = state["losses"][team.rank].to(device)
        self._best.score = state["best"]
        self._best_state = state["best_state"]
        self.history, self._measured = state["history"], state["measured"]
        self._begun = time.monotonic() - state["seconds"]
