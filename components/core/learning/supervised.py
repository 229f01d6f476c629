"""pretrain: supervised training of one backbone on all cell types of a fold (SCIENCE: Adam, step schedule, best checkpoint).

torch only; which wells, where weights go and who hears of an epoch are the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from components.core.config import PretrainConfig
from components.core.learning.augmentation import normal_view
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.inference import Images, well_logits
from components.core.learning.loader import random_sites
from components.core.learning.network import Classifier
from components.core.learning.sampling import well_batches
from components.core.learning.schedules import step_rate
from components.core.learning.selection import Best, Score

History = list[dict[str, Any]]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Validation:
    """The wells that select the checkpoint; none where a fold holds no experiment back.

    Attributes:
        wells: rows of the well table.
        score: accuracy of their logits.
        batch_size: sites a forward pass.
        classes: K.
    """

    wells: NDArray[np.intp]
    score: Score
    batch_size: int
    classes: int

    def accuracy(self, network: torch.nn.Module, images: Images) -> float:
        """Score of the wells at one view of all their sites."""
        return self.score(well_logits(network, images, self.wells, 1, self.batch_size, self.classes))


def train_supervised(
    network: Classifier,
    images: Images,
    wells: NDArray[np.intp],
    validation: Validation,
    config: PretrainConfig,
    seed: int,
    report: Report,
) -> History:
    """Trains in place and leaves the network at its best validated epoch.

    With selection `last`, or where nothing validates, it stays at the last.

    Args:
        network: on the images' device.
        images: the screen's images.
        wells: labelled training wells, rows of the well table.
        validation: what selects the checkpoint.
        config: schedule.
        seed: of sites, order and views.
        report: hears every epoch's record.

    Returns:
        One record an epoch: epoch, epochs, loss, accuracy, sites_per_s, seconds, seconds_left.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator(images.device).manual_seed(seed)
    target_W = torch.from_numpy(images.table.class_W).long().to(images.device)
    optimiser = torch.optim.Adam(
        network.parameters(), lr=config.learning_rates[0], betas=(0.9, 0.999), weight_decay=config.weight_decay
    )
    domain = images.batch_norm.domain
    domain_W = None if domain == "none" else domain_of_wells(images.table, domain)
    best, best_state = Best(), None
    history: History = []
    step, begun = 0, time.monotonic()
    network.to(memory_format=torch.channels_last)
    for epoch in range(config.epochs):
        epoch_begun = time.monotonic()
        rate = step_rate(epoch, config.learning_rates, config.milestones)
        batches = [
            random_sites(images.table, batch, rng) for batch in well_batches(wells, config.batch_size, rng, domain_W)
        ]
        losses = torch.zeros(len(batches), device=images.device)
        network.train()
        for k, (sites, x) in enumerate(images.batches(batches, generator)):
            step += 1
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, step / max(1, config.warmup_steps))
            target_B = target_W[torch.from_numpy(images.table.well_S[sites]).to(images.device)]
            loss = F.cross_entropy(network(normal_view(x, images.augment, generator), target_B), target_B)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses[k] = loss.detach()
        loss_mean = float(losses.mean())  # waits for the device, so that the seconds are of finished work
        seconds = time.monotonic() - epoch_begun
        accuracy = None
        last = epoch + 1 == config.epochs
        if len(validation.wells) and ((epoch + 1) % config.validate_every == 0 or last):
            accuracy = validation.accuracy(network, images)
            if config.selection != "last" and best.improved(accuracy):
                best_state = deepcopy(network.state_dict())
        record = {
            "epoch": epoch + 1,
            "epochs": config.epochs,
            "loss": loss_mean,
            "accuracy": accuracy,
            "sites_per_s": sum(map(len, batches)) / seconds,
            "seconds": seconds,
            "seconds_left": (time.monotonic() - begun) / (epoch + 1) * (config.epochs - epoch - 1),
        }
        history.append(record)
        report(record)
    if best_state is not None:
        network.load_state_dict(best_state)
    return history
