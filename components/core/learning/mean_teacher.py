"""finetune and pseudo_label: mean-teacher training of one backbone on one cell type (Tarvainen & Valpola 2017).

Each step has three views: the student's supervised pass (normal view, labelled wells), its second pass (easy view, all
wells of the batch) for consistency and pseudo-labels, and the teacher's pass (hard view, all wells). torch only.
B batch, K class.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from components.core.config import MeanTeacherConfig
from components.core.learning.augmentation import easy_view, hard_view, normal_view
from components.core.learning.batch_norm import domain_of_wells
from components.core.learning.inference import Images
from components.core.learning.loader import random_sites
from components.core.learning.network import Classifier
from components.core.learning.sampling import well_batches
from components.core.learning.schedules import CycleSchedule, ema_decay, ramp


@dataclass
class Pair:
    """Student and teacher of one backbone, and how far they are.

    Attributes:
        name: the backbone's.
        student: trained by gradients.
        teacher: exponential moving average of the student's parameters; its BatchNorm follows its own input.
        step: optimiser steps taken, running on from finetune into pseudo_label.
    """

    name: str
    student: Classifier
    teacher: Classifier
    step: int = 0

    @classmethod
    def start(cls, name: str, pretrained: Classifier, keep_classifier: bool) -> Pair:
        """From pretrained weights: the teacher keeps the classifier, the student drops it unless told otherwise."""
        teacher = deepcopy(pretrained)
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        if not keep_classifier:
            pretrained.reset_head()
        return cls(name, pretrained, teacher)


@dataclass(frozen=True)
class Wells:
    """The wells of one cell type in a fold, as rows of the well table.

    Attributes:
        labelled: training wells whose labels may be used.
        unlabelled: validation and unlabelled wells, labels hidden.
    """

    labelled: NDArray[np.intp]
    unlabelled: NDArray[np.intp]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Theta' = decay theta' + (1 - decay) theta over parameters; buffers are the teacher's own."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - decay)


def consistency(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Mean squared difference of softmax probabilities over wells and classes, of margin-free logits."""
    return F.mse_loss(student_BK.softmax(1), teacher_BK.softmax(1))


def pseudo_label_loss(logits_BK: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of margin-free logits, a mean over all wells.

    Wells without a label add nothing but count, so that labels of a share of the wells weigh as much as their share.

    Args:
        logits_BK: of the easy view.
        label: hard, the class of each well, (B,), -1 where none; or soft, probabilities of the classes, (B, K), zero
            rows where none.
    """
    if label.dim() == 1:
        return F.cross_entropy(logits_BK, label, ignore_index=-1, reduction="none").mean()
    return -(label * logits_BK.log_softmax(1)).sum(1).mean()


def train_epoch(
    pair: Pair,
    images: Images,
    wells: Wells,
    config: MeanTeacherConfig,
    schedule: CycleSchedule,
    epoch: int,
    pseudo_W: Tensor | None,
    seed: int,
) -> dict[str, float]:
    """One epoch, every labelled well once, in place.

    Args:
        pair: the networks, on the images' device.
        images: the screen's images.
        wells: labelled and unlabelled wells.
        config: weights of the losses.
        schedule: learning rates by epoch.
        epoch: from 0, running on from finetune into pseudo_label.
        pseudo_W: pseudo-labels of the rows of the well table, see pseudo_label_loss; None in finetune.
        seed: of the run; an epoch's randomness depends on it and on `epoch` alone.

    Returns:
        loss, sites_per_s and seconds.
    """
    begun = time.monotonic()
    rng = np.random.default_rng((seed, epoch))
    generator = torch.Generator(images.device).manual_seed(int(rng.integers(2**62)))
    target_W = torch.from_numpy(images.table.class_W).long().to(images.device)
    plate_W = torch.from_numpy(images.table.plate_W).long().to(images.device)
    weight = config.pseudo_label_weight if pseudo_W is not None else 0.0
    optimiser = torch.optim.SGD(pair.student.parameters(), lr=0.0, weight_decay=config.weight_decay)
    domain = images.batch_norm.domain
    domain_W = None if domain == "none" else domain_of_wells(images.table, domain)
    batches = list(_mixed_batches(images, wells, config, rng, domain_W))
    losses = torch.zeros(len(batches), device=images.device)
    pair.student.train()
    pair.teacher.train()
    for k, (sites, x) in enumerate(images.batches([sites for sites, _ in batches])):
        labelled = batches[k][1]
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(epoch + k / len(batches))
        well_B = torch.from_numpy(images.table.well_S[sites]).to(images.device)
        plate_B = plate_W[well_B]
        target_L = target_W[well_B[:labelled]]
        # Each view has its own jitter, so that student and teacher see different noise.
        normal_L = images.standardise.jittered(x[:labelled], plate_B[:labelled], generator)
        supervised_LK = pair.student(normal_view(normal_L, images.augment, generator), target_L)
        loss = (1.0 - weight) * F.cross_entropy(supervised_LK, target_L)
        # A batch of two domains must not be normalised as one.
        parts = [labelled, len(x) - labelled] if domain_W is not None and labelled < len(x) else [len(x)]
        easy_B = easy_view(images.standardise.jittered(x, plate_B, generator), images.augment, generator)
        easy_BK = torch.cat([pair.student(part) for part in torch.split(easy_B, parts)])
        with torch.no_grad():
            hard_B = hard_view(images.standardise.jittered(x, plate_B, generator), images.augment, generator)
            teacher_BK = torch.cat([pair.teacher(part) for part in torch.split(hard_B, parts)])
        strength = config.consistency_weight * ramp(epoch + k / len(batches), config.ramp_epochs)
        loss = loss + strength * consistency(easy_BK, teacher_BK)
        if pseudo_W is not None and labelled < len(x):
            loss = loss + weight * pseudo_label_loss(easy_BK[labelled:], pseudo_W[well_B[labelled:]])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        pair.step += 1
        update_teacher(
            pair.teacher, pair.student, ema_decay(pair.step, epoch + 1, config.ema_decays, config.ema_epochs)
        )
        losses[k] = loss.detach()
    loss_mean = float(losses.mean())  # waits for the device, so that the seconds are of finished work
    seconds = time.monotonic() - begun
    return {
        "loss": loss_mean,
        "sites_per_s": sum(len(sites) for sites, _ in batches) / seconds,
        "seconds": seconds,
    }


def _mixed_batches(
    images: Images,
    wells: Wells,
    config: MeanTeacherConfig,
    rng: np.random.Generator,
    domain_W: NDArray[np.intp] | None,
) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Site batches, labelled first, with how many are labelled; the unlabelled wells go round as often as needed.

    With domains the labelled part is of one domain, and the unlabelled part of one.
    """
    table = images.table
    if domain_W is not None:
        supervised = well_batches(wells.labelled, config.labelled_batch, rng, domain_W)
        others_of: list[NDArray[np.intp]] = []
        while len(wells.unlabelled) and len(others_of) < len(supervised):
            found = well_batches(wells.unlabelled, config.unlabelled_batch, rng, domain_W)
            if not found:
                break
            others_of += found
        for k, batch in enumerate(supervised):
            mixed = np.concatenate([batch, others_of[k]]) if others_of else batch
            yield random_sites(table, mixed, rng), len(batch)
        return
    labelled = random_sites(table, rng.permutation(wells.labelled), rng)
    parts = np.array_split(labelled, max(1, round(len(labelled) / config.labelled_batch)))
    needed = len(parts) * config.unlabelled_batch if len(wells.unlabelled) else 0
    rounds = -(-needed // max(1, len(wells.unlabelled)))
    others = np.concatenate(
        [random_sites(table, rng.permutation(wells.unlabelled), rng) for _ in range(rounds)]
        or [np.empty(0, dtype=np.intp)]
    )[:needed]
    for part, mixed in zip(parts, np.array_split(others, len(parts)), strict=True):
        yield np.concatenate([part, mixed]), len(part)
