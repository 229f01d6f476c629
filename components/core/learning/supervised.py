"""pretrain: supervised training of one backbone on all cell types of a fold (Adam or AdamW, best checkpoint). torch only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from components.core.config import ComputeConfig, PretrainConfig
from components.core.learning.augmentation import cutmix, normal_view
from components.core.learning.checkpoints import Checkpoints, RandomState
from components.core.learning.divergence import DivergenceCheck
from components.core.learning.domain_batch import several_domains
from components.core.learning.fold_data import FoldData
from components.core.learning.network import Classifier, prepare
from components.core.learning.schedules import (
    balanced_draw,
    concatenated,
    domains_of_step,
    one_cycle_rate,
    random_site_batches,
    step_rate,
    well_batches,
)
from components.core.learning.team import (
    Replica,
    Slots,
    StatisticsOfParts,
    restore_statistics,
    running_statistics,
    statistics_of_all,
)
from components.core.learning.training_metrics import BestWeights, EpochMeter


class SupervisedTraining:
    """Trains a network, on the images' device, in place; can be interrupted after any step.

    Attributes:
        history: one record per epoch: epoch, epochs, accuracy, seconds_left, and what EpochMeter measures.
    """

    def __init__(
        self, network: Classifier, data: FoldData, config: PretrainConfig, seed: int, compute: ComputeConfig
    ) -> None:
        prepare(network, compute, data.images.device)
        self._network, self._images, self._data, self._config = network, data.images, data, config
        self._domain_W = data.images.batch_domains
        self._target_W = torch.from_numpy(data.images.table.class_W).long().to(data.images.device)
        optimiser = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
        self._optimiser = optimiser(
            network.parameters(),
            lr=config.learning_rates[0],
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._slots = Slots(data.images.team, compute.accumulate, network.has_neck)
        self._domains = domains_of_step(data.wells.training, self._domain_W, data.images.batch_norm.domains_per_step)
        self._slots.warn_of_small_parts(**{"pretrain.batch_size": (config.batch_size, self._domains)})
        self._replica = Replica(network, self._slots)
        self._random = RandomState(seed, self._slots)
        self._best = BestWeights(network)
        networks = {"the network": network}
        self._check = DivergenceCheck(networks, data.images.team, "pretrain.learning_rates", network.autocasts)
        self.history: list[dict[str, Any]] = []
        self._epoch = 0
        self._step = 0
        """optimiser steps done"""
        self._meter: EpochMeter | None = None
        self._saved_meter: dict[str, Any] | None = None
        self._begun = time.monotonic()

    def run(
        self, report: Callable[[dict[str, Any]], None] = lambda _: None, checkpoints: Checkpoints | None = None
    ) -> None:
        """Trains, from the last checkpoint if there is one, and leaves the network at its best validated epoch.

        With selection `last`, or without validation wells, it stays at the last epoch. `report` gets every epoch's record.
        """
        checkpoints = checkpoints or Checkpoints()
        saved = checkpoints.resume()
        if saved is not None:
            self.restore(saved)
        while self._epoch < self._config.epochs:
            report(self._run_epoch(checkpoints))
        self._best.load()

    def _run_epoch(self, checkpoints: Checkpoints) -> dict[str, Any]:
        """Runs an epoch, or the rest of it; returns its record."""
        config, images, rng = self._config, self._images, self._random.of_sites
        wells = self._data.wells.training
        if config.class_balance:
            wells = balanced_draw(wells, images.table.class_W[wells], config.class_balance, rng)
        batches = well_batches(wells, config.batch_size, rng, self._domain_W, self._domains)
        batches = random_site_batches(images.table, batches, rng)
        meter = self._meter = EpochMeter(images, len(batches))
        if self._saved_meter is not None:
            meter.restore(self._saved_meter)
        left = batches[meter.done :]
        parts = [part for batch in left for part in self._slots.parts(batch, self._domains)]
        # All wells of the epoch are copied to the device at once.
        well_S = torch.from_numpy(images.table.well_S[concatenated(parts)]).to(images.device)
        wells_of_parts = iter(torch.split(well_S, [len(part) for part in parts]))
        statistics = StatisticsOfParts([self._network], len(self._slots.own))
        meter.start()
        self._network.train()
        taken = images.batches(parts, self._random.of_views)
        for batch in left:
            self._step += 1
            rate = self._rate(meter.done / len(batches))
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            self._optimiser.zero_grad(set_to_none=True)
            size = self._slots.size(batch, self._domains)
            with statistics.step() as part_of_step:
                for k, generator in enumerate(self._random.of_views):
                    sites, x = next(taken)
                    well_B = next(wells_of_parts)
                    target_B = self._target_W[well_B]
                    domains = self._slots.domains_of_part(self._domains)
                    with part_of_step(), self._replica.part(k):
                        view = normal_view(x, images.augment, generator)
                        view, target_B, type_BT, weight_B = cutmix(
                            view, target_B, images.cell_types_of(well_B), images.augment, generator, domains
                        )
                        with several_domains(self._network, domains):
                            output = self._replica(view, target_B, type_BT)
                        loss = self._network.loss(output, target_B, config.label_smoothing, weight_B)
                        loss = loss * self._slots.weight(len(sites), size)
                        loss.backward()  # type: ignore[no-untyped-call]
                    meter.add(loss, len(sites))
            self._optimiser.step()
            meter.done += 1
            checkpoints.save_if_due(self.state)
        measured = meter.measured()
        self._check(self._where, meter.losses)
        accuracy = self._validate()
        self._epoch, self._saved_meter = self._epoch + 1, None
        self._random.begin_epoch()
        record = {
            "epoch": self._epoch,
            "epochs": config.epochs,
            "accuracy": accuracy,
            **measured,
            "seconds_left": (time.monotonic() - self._begun) / self._epoch * (config.epochs - self._epoch),
        }
        self.history.append(record)
        return record

    @property
    def _where(self) -> str:
        return f"epoch {self._epoch + 1} of {self._config.epochs}"

    def _rate(self, done: float) -> float:
        """Learning rate of the current step, after a share of the epoch's steps."""
        config = self._config
        if config.schedule == "one_cycle":
            return one_cycle_rate((self._epoch + done) / config.epochs, config.learning_rates[0])
        rate = step_rate(self._epoch, config.learning_rates, config.milestones)
        return rate * min(1.0, self._step / max(1, config.warmup_steps))

    def _validate(self) -> float | None:
        """Accuracy of the validation wells, or None if there are none or it is not time; keeps the best weights."""
        config, validation = self._config, self._data.validation
        last = self._epoch + 1 == config.epochs
        self._images.team.average_(running_statistics([self._network]))
        if not len(validation.wells) or ((self._epoch + 1) % config.validate_every and not last):
            return None
        accuracy = validation.score(validation.logits(self._network, self._images))
        if config.selection != "last":
            self._best.improved(accuracy)
        return accuracy

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; every process must call it.

        Raises:
            InputError: a loss or a weight is not finite.
        """
        assert self._meter is not None
        self._check(self._where, self._meter.losses)
        return {
            "network": self._network.state_dict(),
            "statistics": statistics_of_all([self._network], self._images.team),
            "optimiser": self._optimiser.state_dict(),
            "random": self._random.state(),
            "epoch": self._epoch,
            "step": self._step,
            "meter": self._meter.state(),
            "best": self._best.state(),
            "history": self.history,
            "seconds": time.monotonic() - self._begun,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self._network.load_state_dict(state["network"])
        restore_statistics([self._network], state["statistics"], self._images.team)
        self._optimiser.load_state_dict(state["optimiser"])
        self._random.restore(state["random"])
        self._epoch, self._step, self._saved_meter = state["epoch"], state["step"], state["meter"]
        self._best.restore(state["best"])
        self.history = state["history"]
        self._begun = time.monotonic() - state["seconds"]
