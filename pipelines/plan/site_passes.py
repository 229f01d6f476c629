"""How many site passes a task of the DAG takes: one image through one network once, counted as the training code does.

Steps and batches are those of core.learning (supervised, mean_teacher_run, inference, prediction); tests compare the counts
with recorded passes. Pure NumPy; only the number of pseudo-label refreshes is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.core.config import RunConfig
from components.core.learning.schedules import CycleSchedule
from pipelines.plan.dag import PlannedTask
from pipelines.plan.screens import FoldMasks, ScreenWells, fold_masks

Kind = Literal["training", "forward"]
Mask = NDArray[np.bool_]
PIECE = 4096
"""Wells that are predicted together (core.learning.prediction): BatchNorm adapts to their domains for each piece anew."""
LEAST = 2
"""Wells of a part of a batch (core.learning.team): smaller batches are filled by repetition."""


@dataclass(frozen=True)
class Passes:
    """Work of one purpose and one network.

    Attributes:
        kind: `training` is what an epoch's sites_per_s counts; `forward` is inference beside it.
        purpose: training, validation, refresh, logits (and embeddings of the same wells), embeddings (of the others).
        backbone: its name.
        student: forward and backward passes.
        forward: passes without gradients: the teacher's, and all of inference.
        sites: images read for them, views and passes of the same batch once.
        group: what the images are read together with: those of a group find each other's in a task's memory.
    """

    kind: Kind
    purpose: str
    backbone: str
    student: int
    forward: int
    sites: int
    group: Literal["screen", "holdout"] = "screen"


@dataclass(frozen=True)
class Refreshes:
    """How often pseudo-labels are made: known where the clock decides, else bounds and a guess between them."""

    least: int
    expected: float
    most: int


def task_passes(config: RunConfig, wells: ScreenWells, task: PlannedTask) -> list[Passes]:
    """Site passes of a task; none of a step that runs without networks.

    Raises:
        InputError: a fold without wells to train on.
    """
    if task.step == "pretrain":
        return list(_pretrain(config, wells, task))
    if task.step in ("finetune", "pseudo_label"):
        return list(_mean_teacher(config, wells, task))
    return list(_prediction(config, wells, task)) if task.step == "infer" else []


def validated_epochs(first: int, stop: int, every: int) -> list[int]:
    """Epochs, from 0, after which a step validates: every so many, and after the last."""
    return [epoch for epoch in range(first, stop) if (epoch + 1 - first) % every == 0 or epoch + 1 == stop]


def batch_sizes(count_D: list[int], size: int, by_domain: bool) -> list[int]:
    """Wells of an epoch's batches, whatever their order: those of core.learning.schedules.well_batches.

    Args:
        count_D: wells of each domain.
        size: wells of a batch, about.
        by_domain: whether a batch holds one domain; a domain of one well is then left out.
    """
    if not by_domain:
        return _split(sum(count_D), max(1, round(sum(count_D) / size)))
    return [
        part for count in count_D if count > 1 for part in _split(count, max(1, min(round(count / size), count // 2)))
    ]


def filled(sizes: list[int], config: RunConfig) -> list[int]:
    """Batches as large as their parts need them, over processes and one after the other."""
    parts = processes(config) * config.compute.accumulate
    return [max(size, LEAST * parts) if size and parts > 1 else size for size in sizes]


def processes(config: RunConfig) -> int:
    """GPUs of a pod, each with a process: as configured; 0 takes those that there are, of which a plan gives one."""
    return max(1, config.compute.processes)


def refreshes(config: RunConfig, cell_type: str, validates: bool) -> Refreshes:
    """How often pseudo_label makes its labels: at its start, and at every new best of the teachers but the last epoch's.

    How often n validations bring a new best is not known before: at least as often as chance would among equals
    (H(n + 1) - 1 times), at most always. The guess is their geometric mean.
    """
    teacher = config.mean_teacher
    schedule = CycleSchedule.of(teacher, cell_type)
    first, stop = schedule.cut, schedule.total
    if teacher.selection == "last" or not validates:
        count = 1 + sum((epoch + 1 - first) % teacher.refresh_epochs == 0 for epoch in range(first, stop - 1))
        return Refreshes(count, float(count), count)
    chances = len(validated_epochs(first, stop, teacher.validate_every)) - 1
    by_chance = sum(1.0 / k for k in range(2, chances + 2))
    return Refreshes(1, 1.0 + math.sqrt(by_chance * chances), 1 + chances)


def training_sites(config: RunConfig, wells: ScreenWells, masks: FoldMasks) -> tuple[int, int]:
    """Labelled sites of an epoch of the mean teacher, and the others that its batches mix in."""
    teacher = config.mean_teacher
    domains, by_domain = _domains(config, wells)
    others_W = masks.validation | masks.unlabelled
    labelled = filled(batch_sizes(_counts(domains, masks.training), teacher.labelled_batch, by_domain), config)
    if not others_W.any():
        return sum(labelled), 0
    if not by_domain:
        return sum(labelled), sum(filled([teacher.unlabelled_batch] * len(labelled), config))
    of_round = filled(batch_sizes(_counts(domains, others_W), teacher.unlabelled_batch, by_domain), config)
    if not of_round:
        return sum(labelled), 0
    # Rounds come in random order; an incomplete one is as large as its share on average.
    return sum(labelled), round(len(labelled) * sum(of_round) / len(of_round))


def _pretrain(config: RunConfig, wells: ScreenWells, task: PlannedTask) -> Iterator[Passes]:
    assert task.backbone is not None
    assert task.fold is not None
    masks = fold_masks(config, wells, task.fold)
    domains, by_domain = _domains(config, wells)
    settings = config.pretrain
    batches = filled(batch_sizes(_counts(domains, masks.training), settings.batch_size, by_domain), config)
    sites = settings.epochs * sum(batches)
    yield Passes("training", "training", task.backbone, sites, 0, sites)
    validations = len(validated_epochs(0, settings.epochs, settings.validate_every)) if masks.validation.any() else 0
    once = _inference(config, wells, masks.validation, 1)
    yield Passes("forward", "validation", task.backbone, 0, validations * once, validations * once)


def _mean_teacher(config: RunConfig, wells: ScreenWells, task: PlannedTask) -> Iterator[Passes]:
    assert task.cell_type is not None
    assert task.fold is not None
    masks = fold_masks(config, wells, task.fold, task.cell_type)
    schedule = CycleSchedule.of(config.mean_teacher, task.cell_type)
    first, stop = (0, schedule.cut) if task.step == "finetune" else (schedule.cut, schedule.total)
    labelled, others = training_sites(config, wells, masks)
    batch, epochs = labelled + others, stop - first
    validates = bool(masks.validation.any())
    validations = len(validated_epochs(first, stop, config.mean_teacher.validate_every)) if validates else 0
    predicts = task.step == "pseudo_label" or not config.has_pseudo_labels
    if predicts and validates and config.mean_teacher.selection != "last":
        validations += 1  # the weights that it starts from may stay the best
    once = _inference(config, wells, masks.validation, 1)
    unlabelled = int((masks.validation | masks.unlabelled).sum())
    made = refreshes(config, task.cell_type, validates).expected if unlabelled else 0.0
    labelling = round(made * config.mean_teacher.pseudo_label_passes * unlabelled)
    for backbone in config.backbones:
        yield Passes("training", "training", backbone.name, epochs * (labelled + batch), epochs * batch, epochs * batch)
        both = 2 * validations * once  # student and teacher
        yield Passes("forward", "validation", backbone.name, 0, both, both)
        if task.step == "pseudo_label":
            yield Passes("forward", "refresh", backbone.name, 0, labelling, labelling)
    if task.step == "pseudo_label":
        yield from _prediction(config, wells, task)


def _prediction(config: RunConfig, wells: ScreenWells, task: PlannedTask) -> Iterator[Passes]:
    """Logits of wells whose labels the networks never saw, and embeddings of all wells of the cell type."""
    assert task.cell_type is not None
    assert task.fold is not None
    masks = fold_masks(config, wells, task.fold, task.cell_type)
    of_type_W = wells.of_type(task.cell_type)
    held_out_W = wells.holdout_W & of_type_W
    named: tuple[tuple[Literal["screen", "holdout"], list[Mask], Mask], ...] = (
        ("screen", [masks.validation, masks.unlabelled], of_type_W & ~held_out_W),
        ("holdout", [held_out_W & wells.treatment_W], held_out_W),
    )
    embedded = config.embeddings.views if config.embeddings.enabled else 0
    for backbone in config.backbones:
        for group, of_logits, all_W in named:
            # One pass through the backbone gives both.
            views = max(config.predict.views, embedded)
            count = sum(_predicted(config, wells, chosen_W, views) for chosen_W in of_logits)
            sites = sum(_predicted(config, wells, chosen_W, 1) for chosen_W in of_logits)
            yield Passes("forward", "logits", backbone.name, 0, count, sites, group)
            if embedded:
                others_W = all_W & ~np.logical_or.reduce(of_logits)
                count = _predicted(config, wells, others_W, embedded)
                sites = _predicted(config, wells, others_W, 1)
                yield Passes("forward", "embeddings", backbone.name, 0, count, sites, group)


def _predicted(config: RunConfig, wells: ScreenWells, chosen_W: Mask, views: int) -> int:
    """Passes of a prediction, which goes piece by piece."""
    if config.batch_norm.domain == "none":
        return _inference(config, wells, chosen_W, views)
    chosen_w, total = np.flatnonzero(chosen_W), 0
    for start in range(0, len(chosen_w), PIECE):
        piece_W = np.zeros_like(chosen_W)
        piece_W[chosen_w[start : start + PIECE]] = True
        total += _inference(config, wells, piece_W, views)
    return total


def _inference(config: RunConfig, wells: ScreenWells, chosen_W: Mask, views: int) -> int:
    """Passes of well_logits: all sites in all views, after one pass over a domain's wells where BatchNorm adapts."""
    count = int(chosen_W.sum()) * wells.sites * views
    kind = config.batch_norm.domain
    if kind == "none" or not chosen_W.any():
        return count
    domain_W = wells.domain_W[kind]
    # Held-out experiments are a screen of their own: a wide domain has their wells alone.
    source_W = np.isin(domain_W, domain_W[chosen_W]) & (wells.holdout_W == wells.holdout_W[chosen_W][0])
    if config.batch_norm.statistics == "controls":
        source_W &= ~wells.treatment_W
    return count + int(source_W.sum()) * wells.sites


def _domains(config: RunConfig, wells: ScreenWells) -> tuple[NDArray[np.intp], bool]:
    """Domain of every well for training batches, and whether a batch holds one domain."""
    kind = config.batch_norm.domain
    if kind == "none":
        return np.zeros(len(wells.fold_W), dtype=np.intp), False
    return wells.domain_W[kind], True


def _counts(domain_W: NDArray[np.intp], chosen_W: Mask) -> list[int]:
    counts: list[int] = np.unique(domain_W[chosen_W], return_counts=True)[1].tolist()
    return counts


def _split(count: int, parts: int) -> list[int]:
    """Sizes of np.array_split."""
    return [count // parts + (k < count % parts) for k in range(parts)]
