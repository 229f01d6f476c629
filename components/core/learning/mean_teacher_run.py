"""Epochs of all backbones' mean teachers side by side: validation, best checkpoints, pseudo-label refreshes. torch only.

"Dual Xception, end to end": the backbones share validation and pseudo-labels, and nothing else. W wells, K class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core import progress
from components.core.learning.inference import Images, well_logits
from components.core.learning.mean_teacher import Pair, Wells, train_epoch
from components.core.learning.schedules import CycleSchedule
from components.core.learning.selection import Best, Score
from components.core.learning.step_settings import MeanTeacherSettings

Refresh = Callable[[int], Tensor]
"""Makes pseudo-labels anew at an epoch, for every row of the well table: classes or probabilities (pseudo_label_loss)."""


@dataclass
class EpochsRun:
    """What happened.

    Attributes:
        history: one record an epoch and backbone.
        refreshes: epochs before which pseudo-labels were made.
        pseudo_W: the last pseudo-labels.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    refreshes: list[int] = field(default_factory=list)
    pseudo_W: Tensor | None = None


def train_epochs(
    pairs: Sequence[Pair],
    images: Images,
    wells: Wells,
    validation: NDArray[np.intp],
    score: Score,
    settings: MeanTeacherSettings,
    classes: int,
    epochs: range,
    cell_type: str,
    fold: int,
    refresh: Refresh | None,
    keep_best: bool,
) -> EpochsRun:
    """Trains the pairs in place.

    With `keep_best` (the training that predicts: pseudo_label, or finetune where none follows) each student ends at its
    best validated epoch, the start included, and the teachers at the epoch where their mean was best; with selection
    `last`, or without validation wells, all end at their last. Without it the last state goes on into pseudo_label.

    Args:
        pairs: one of each backbone.
        images: the screen's images.
        wells: labelled and unlabelled wells.
        validation: rows of the well table; may be empty.
        score: accuracy of their logits.
        settings: losses, schedules and inference.
        classes: K.
        epochs: epochs to run, counted from the start of finetune.
        cell_type: decides the cycles' length.
        fold: part of the seed.
        refresh: makes pseudo-labels; None trains without.
        keep_best: whether the best validated weights are taken at the end.
    """
    config = settings.mean_teacher
    schedule = CycleSchedule.of(config, cell_type)
    done = EpochsRun()
    begun = time.monotonic()
    selects = config.selection != "last" and len(validation) > 0
    best_teachers = Best()
    best_student = {pair.name: Best() for pair in pairs}
    best_state = {pair.name: deepcopy(pair.student.state_dict()) for pair in pairs}
    best_teacher_state = {pair.name: deepcopy(pair.teacher.state_dict()) for pair in pairs}

    def validate() -> tuple[dict[str, float], float]:
        """Accuracy of each student, and of the teachers' mean logits."""
        students = {}
        teachers_WK = np.zeros((len(validation), classes))
        for pair in pairs:
            students[pair.name] = score(_logits(pair.student, images, validation, settings, classes))
            teachers_WK += _logits(pair.teacher, images, validation, settings, classes)
            if best_student[pair.name].improved(students[pair.name]):
                best_state[pair.name] = deepcopy(pair.student.state_dict())
        return students, score((teachers_WK / len(pairs)).astype(np.float32))

    if refresh is not None:
        done.pseudo_W = refresh(epochs.start)
        done.refreshes.append(epochs.start)
    if keep_best and selects:
        best_teachers.improved(validate()[1])
    for epoch in epochs:
        records: list[dict[str, Any]] = []
        for k, pair in enumerate(pairs):
            seed = (settings.seed * 1009 + fold) * 31 + k
            measured = train_epoch(pair, images, wells, config, schedule, epoch, done.pseudo_W, seed)
            records.append({"backbone": pair.name, "epoch": epoch + 1, "epochs": schedule.total, **measured})
        last = epoch + 1 == epochs.stop
        students: dict[str, float] = {}
        teachers: float | None = None
        # Where validation decides nothing, labels are renewed by the clock.
        renew = not selects and (epoch + 1 - epochs.start) % config.refresh_epochs == 0
        if len(validation) and ((epoch + 1 - epochs.start) % config.validate_every == 0 or last):
            students, teachers = validate()
            if selects and best_teachers.improved(teachers):
                renew = True
                best_teacher_state = {pair.name: deepcopy(pair.teacher.state_dict()) for pair in pairs}
        if refresh is not None and renew and not last:
            done.pseudo_W = refresh(epoch + 1)
            done.refreshes.append(epoch + 1)
        left = (time.monotonic() - begun) / (epoch + 1 - epochs.start) * (epochs.stop - epoch - 1)
        for record in records:
            record["accuracy"] = students.get(str(record["backbone"]))
            record["teachers_accuracy"] = teachers  # of their mean logits, whose new best renews pseudo-labels
            progress.epoch(**record, seconds_left=left)
        done.history += records
    if keep_best and selects:
        for pair in pairs:
            pair.student.load_state_dict(best_state[pair.name])
            pair.teacher.load_state_dict(best_teacher_state[pair.name])
    return done


def _logits(
    network: torch.nn.Module, images: Images, wells: NDArray[np.intp], settings: MeanTeacherSettings, classes: int
) -> NDArray[np.float32]:
    return well_logits(network, images, wells, 1, settings.predict.batch_size, classes)
