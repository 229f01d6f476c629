"""The mean teacher of one backbone on one cell type: losses, views and an epoch (Tarvainen & Valpola 2017).

Each step has three views: the student's supervised pass (normal view, labelled wells), its second pass (easy view, all
wells of the batch) for consistency and pseudo-labels, and the teacher's pass (hard view, all wells). torch only.
B batch, K class.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from components.core.config import MeanTeacherConfig
from components.core.learning.augmentation import cutmix, easy_view, hard_view, normal_view
from components.core.learning.checkpoints import RandomState
from components.core.learning.domain_batch import several_domains
from components.core.learning.fold_data import FoldWells
from components.core.learning.images import Images
from components.core.learning.network import Classifier
from components.core.learning.schedules import (
    CycleSchedule,
    MixedBatch,
    concatenated,
    ema_decay,
    mixed_batches,
    ramp,
)
from components.core.learning.team import Replica, Slots, StatisticsOfParts, running_statistics
from components.core.learning.training_metrics import EpochMeter


@dataclass
class Pair:
    """Student and teacher of one backbone, and the number of their steps."""

    name: str  # of the backbone
    student: Classifier  # trained by gradients
    teacher: Classifier  # exponential moving average of the student's parameters; its BatchNorm follows its own input
    step: int = 0  # optimiser steps taken, running on from finetune into pseudo_label

    @classmethod
    def start(cls, name: str, pretrained: Classifier, keep_classifier: bool) -> Pair:
        """A pair of pretrained weights; the teacher keeps the classifier, the student only with `keep_classifier`."""
        teacher = deepcopy(pretrained)
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        if not keep_classifier:
            pretrained.reset_head()
        return cls(name, pretrained, teacher)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Theta' = decay theta' + (1 - decay) theta for the parameters; the teacher keeps its own buffers."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - decay)


def consistency(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Mean squared difference of softmax probabilities over wells and classes, of margin-free logits."""
    return F.mse_loss(student_BK.softmax(1), teacher_BK.softmax(1))


def pseudo_label_loss(logits_BK: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the easy view's margin-free logits, a mean over all wells.

    Wells without a label add nothing to the sum but count in the mean, so that labels of half the wells weigh half as much.
    Labels are hard: the class of each well, (B,), -1 for none; or soft: probabilities of the classes, (B, K), zeros for none.
    """
    if label.dim() == 1:
        return F.cross_entropy(logits_BK, label, ignore_index=-1, reduction="none").mean()
    return -(label * logits_BK.log_softmax(1)).sum(1).mean()


class PairEpoch:
    """One epoch of a pair over the batches of `mixed_batches`, in place; it can be interrupted and resumed between two steps.

    Args:
        pair: the networks, on the images' device.
        replica: the student as all processes train it.
        images: the screen's images.
        wells: the fold's wells of the cell type.
        config: losses and weights.
        schedule: learning rates.
        epoch: counted from the start of finetune, from 0.
        pseudo_W: pseudo-labels of every row of the well table, see pseudo_label_loss; None before pseudo_label.
        seed: seed of sites, order and views, together with the epoch.
        slots: the parts of a batch.
    """

    def __init__(
        self,
        pair: Pair,
        replica: Replica,
        images: Images,
        wells: FoldWells,
        config: MeanTeacherConfig,
        schedule: CycleSchedule,
        epoch: int,
        pseudo_W: Tensor | None,
        seed: int,
        slots: Slots,
    ) -> None:
        self._pair, self._student, self._images, self._config, self._slots = pair, replica, images, config, slots
        self._schedule, self._epoch = schedule, epoch
        self._pseudo_W = pseudo_W
        self._target_W = torch.from_numpy(images.table.class_W).long().to(images.device)
        self._plate_W = torch.from_numpy(images.table.plate_W).long().to(images.device)
        self._random = RandomState((seed, epoch), slots)
        domain_W = images.batch_domains
        self._by_domain = domain_W is not None
        rng, wanted = self._random.of_sites, images.batch_norm.domains_per_step
        self._batches = mixed_batches(images.table, wells.training, wells.hidden, config, rng, domain_W, wanted)
        self._meter = EpochMeter(images, len(self._batches))

    @property
    def losses(self) -> Tensor:
        """This process's share of each step's loss; 0 for steps to come."""
        return self._meter.losses

    def run(self, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Runs the epoch, or the rest of it; returns what EpochMeter measures. `after_step` may call `state`."""
        pair, images, config, meter = self._pair, self._images, self._config, self._meter
        optimiser = torch.optim.SGD(pair.student.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True)
        parts = [self._parts(batch) for batch in self._batches[meter.done :]]
        flat = [sites for of_step in parts for sites, _ in of_step]
        # Wells of the epoch are copied to the device at once.
        well_S = torch.from_numpy(images.table.well_S[concatenated(flat)]).to(images.device)
        wells = iter(torch.split(well_S, [len(sites) for sites in flat]))
        # All views see one crop.
        taken = images.batches(flat, self._random.of_views, jitter=images.standardise.per_image)
        statistics = StatisticsOfParts([pair.student, pair.teacher], len(self._slots.own))
        meter.start()
        pair.student.train()
        pair.teacher.train()
        for of_step in parts:
            batch = self._batches[meter.done]
            for group in optimiser.param_groups:
                group["lr"] = self._schedule.rate(self._time)
            optimiser.zero_grad(set_to_none=True)
            with statistics.step() as part_of_step:
                for k, ((_, own), generator) in enumerate(zip(of_step, self._random.of_views, strict=True)):
                    sites, x = next(taken)
                    with part_of_step(), self._student.part(k):
                        loss = self._loss(x, next(wells), own, batch, generator)
                        loss.backward()  # type: ignore[no-untyped-call]
                    meter.add(loss, len(sites))
            optimiser.step()
            step = pair.step + config.ema_first_step
            decay = ema_decay(step, self._epoch + 1, config.ema_decays, config.ema_epochs)
            pair.step += 1
            update_teacher(pair.teacher, pair.student, decay)
            meter.done += 1
            after_step()
        measured = meter.measured()
        images.team.average_(running_statistics([pair.student, pair.teacher]))
        return measured

    @property
    def _time(self) -> float:
        """Epochs since the start of finetune, fractional."""
        return self._epoch + self._meter.done / len(self._batches)

    def _parts(self, batch: MixedBatch) -> list[tuple[NDArray[np.intp], int]]:
        """This process's parts of a batch, labelled sites first, with their number of labelled sites."""
        both = [
            self._slots.parts(part, domains)
            for part, domains in zip(np.split(batch.sites, [batch.labelled]), batch.domains, strict=True)
        ]
        return [(np.concatenate([own, others]), len(own)) for own, others in zip(*both, strict=True)]

    def _loss(self, x: Tensor, well_B: Tensor, labelled: int, batch: MixedBatch, generator: Generator) -> Tensor:
        """The loss of one part of a batch, weighted so that the mean over processes of their parts' sums is that of the batch.

        `labelled` images come first in `x`; without any, or with a lone one and a neck, there is no supervised pass.
        """
        images, config, pair = self._images, self._config, self._pair
        plate_B = self._plate_W[well_B]
        well_L = well_B[:labelled]
        target_L = self._target_W[well_L]
        has_pseudo_labels = self._pseudo_W is not None and labelled < len(x)
        weight = config.pseudo_label_weight if has_pseudo_labels else 0.0
        sizes = [
            self._slots.size(part, domains)
            for part, domains in zip(np.split(batch.sites, [batch.labelled]), batch.domains, strict=True)
        ]
        of_labelled = self._slots.weight(labelled, sizes[0])
        of_others = self._slots.weight(len(x) - labelled, sizes[1])
        of_all = self._slots.weight(len(x), sum(sizes))
        domains = [self._slots.domains_of_part(each) for each in batch.domains]
        # Two copies of one image are each other's opposites after a neck, whatever they show.
        is_lone = config.mix == "natural" and batch.labelled == 1 and pair.student.has_neck
        if labelled and not is_lone:
            # Each view has its own jitter, so that student and teacher see different noise, unless images have theirs.
            normal_L = images.standardise.jittered(x[:labelled], plate_B[:labelled], generator)
            normal_L = normal_view(normal_L, images.augment, generator)
            normal_L, target_L, type_LT, weight_L = cutmix(
                normal_L, target_L, images.cell_types_of(well_L), images.augment, generator, domains[0]
            )
            with several_domains(pair.student, domains[0]):
                supervised = self._student(normal_L, target_L, type_LT)
            loss = (1.0 - weight) * pair.student.loss(supervised, target_L, weight_B=weight_L) * of_labelled
        else:
            # Parts of the head that only targets reach still decay, and processes exchange their gradients.
            loss = 0.0 * torch.cat([p.flatten() for p in pair.student.head.parameters()]).sum()
        # Labelled and other wells are of different domains, which must not be normalised as one.
        pieces = [(len(x), 1)]
        if self._by_domain:
            pieces = [piece for piece in zip((labelled, len(x) - labelled), domains, strict=True) if piece[0]]

        def passed(network: Callable[..., Tensor], of: nn.Module, view_B: Tensor) -> Tensor:
            """Logits of a view, part by part."""
            logits = []
            split = [size for size, _ in pieces]
            for part, own_B, (_, count) in zip(
                torch.split(view_B, split), torch.split(well_B, split), pieces, strict=True
            ):
                with several_domains(of, count):
                    logits.append(network(part, None, images.cell_types_of(own_B)))
            return torch.cat(logits)

        easy_B = easy_view(images.standardise.jittered(x, plate_B, generator), images.augment, generator)
        easy_BK = passed(self._student, pair.student, easy_B)
        with torch.no_grad():
            hard_B = hard_view(images.standardise.jittered(x, plate_B, generator), images.augment, generator)
            teacher_BK = passed(pair.teacher, pair.teacher, hard_B)
        strength = config.consistency_weight * ramp(self._time, config.ramp_epochs)
        loss = loss + strength * consistency(easy_BK, teacher_BK) * of_all
        if self._pseudo_W is not None and has_pseudo_labels:
            pseudo = pseudo_label_loss(easy_BK[labelled:], self._pseudo_W[well_B[labelled:]])
            loss = loss + weight * pseudo * of_others
        return loss

    def state(self) -> dict[str, Any]:
        """Progress of the epoch, without the networks; every process must call it."""
        return {"random": self._random.state(), "meter": self._meter.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned; the batches follow from the seed."""
        self._random.restore(state["random"])
        self._meter.restore(state["meter"])
