"""Epochs of all backbones' mean teachers side by side: validation, best weights, pseudo-labels made anew. torch only.

"Dual Xception, end to end": the backbones share validation and pseudo-labels, and nothing else. W wells, K class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core import progress
from components.core.learning.checkpoints import Checkpoints, fold_seed
from components.core.learning.inference import Images, well_logits
from components.core.learning.mean_teacher import Pair, PairEpoch, Wells
from components.core.learning.network import prepare
from components.core.learning.schedules import CycleSchedule
from components.core.learning.step_settings import MeanTeacherSettings
from components.core.learning.team import Replica, Slots, restore_statistics, statistics_of_all
from components.core.learning.training_metrics import Best, Score


class Refresh(Protocol):
    """Makes pseudo-labels anew before an epoch, and remembers what the next refresh needs of the last."""

    def __call__(self, epoch: int) -> Tensor:
        """For every row of the well table: classes or probabilities (pseudo_label_loss)."""

    def state(self) -> dict[str, Any]:
        """What it remembers, plain."""

    def restore(self, state: dict[str, Any]) -> None:
        """Remembers what `state` told."""


@dataclass
class EpochsRun:
    """What happened.

    Attributes:
        history: one record an epoch and backbone.
        refreshes: epochs before which pseudo-labels were made.
        pseudo_W: the last pseudo-labels.
        state: gives what `resumed` takes, also once all epochs are done.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    refreshes: list[int] = field(default_factory=list)
    pseudo_W: Tensor | None = None
    state: Callable[[], dict[str, Any]] = dict


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
    checkpoints: Checkpoints | None = None,
    resumed: Mapping[str, Any] | None = None,
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
        checkpoints: where the state is saved by time; None saves none.
        resumed: what `checkpoints` had; None starts at the first epoch.
    """
    training = _Training(
        pairs, images, wells, validation, score, settings, classes, epochs, cell_type, fold, refresh, keep_best
    )
    checkpoints = checkpoints or Checkpoints()
    if resumed is None:
        training.start()
    else:
        training.restore(resumed)
    while training.epoch < epochs.stop:
        training.run_epoch(checkpoints)
    training.end()
    training.done.state = training.state
    return training.done


@dataclass
class _Kept:
    """The best weights of a backbone so far."""

    student: dict[str, Any]
    teacher: dict[str, Any]
    best: Best = field(default_factory=Best)


class _Training:
    """The state of a training of pairs between two steps, and an epoch of it."""

    def __init__(
        self,
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
    ) -> None:
        self._pairs, self._images, self._wells = pairs, images, wells
        self._validation, self._score, self._settings = validation, score, settings
        self._classes, self._epochs, self._fold, self._refresh = classes, epochs, fold, refresh
        self._schedule = CycleSchedule.of(settings.mean_teacher, cell_type)
        self._slots = Slots(images.team, settings.compute.accumulate)
        self._networks = [network for pair in pairs for network in (pair.student, pair.teacher)]
        for network in self._networks:
            prepare(network, settings.compute, images.device)
        self._slots.warn_of_small_parts(
            **{
                "mean_teacher.labelled_batch": settings.mean_teacher.labelled_batch,
                "mean_teacher.unlabelled_batch": settings.mean_teacher.unlabelled_batch,
            }
        )
        self._replicas = [Replica(pair.student, self._slots) for pair in pairs]
        self._selects = settings.mean_teacher.selection != "last" and len(validation) > 0
        self._keeps = keep_best and self._selects
        self._kept = {
            pair.name: _Kept(deepcopy(pair.student.state_dict()), deepcopy(pair.teacher.state_dict()))
            for pair in (pairs if self._selects else ())
        }
        self._best_teachers = Best()
        self._current: PairEpoch | None = None
        self._records: list[dict[str, Any]] = []
        """of the epoch's backbones that are done"""
        self._begun = time.monotonic()
        self.epoch = epochs.start
        self.done = EpochsRun()

    def start(self) -> None:
        """What comes before the first epoch: pseudo-labels, and the accuracy of the start."""
        if self._refresh is not None:
            self._renew(self.epoch)
        if self._keeps:
            self._best_teachers.improved(self._validate()[1])

    def run_epoch(self, checkpoints: Checkpoints) -> None:
        """Runs an epoch of all backbones, or the rest of it; saves between steps when it is time."""
        config, schedule, epoch = self._settings.mean_teacher, self._schedule, self.epoch
        for k, pair in list(enumerate(self._pairs))[len(self._records) :]:
            if self._current is None:
                self._current = self._epoch_of(k)
            measured = self._current.run(lambda: checkpoints.save_if_due(self.state))
            self._current = None
            self._records.append({"backbone": pair.name, "epoch": epoch + 1, "epochs": schedule.total, **measured})
        since = epoch + 1 - self._epochs.start
        last = epoch + 1 == self._epochs.stop
        students: dict[str, float] = {}
        teachers: float | None = None
        # Where validation decides nothing, labels are renewed by the clock.
        renew = not self._selects and since % config.refresh_epochs == 0
        if len(self._validation) and (since % config.validate_every == 0 or last):
            students, teachers = self._validate()
            if self._selects and self._best_teachers.improved(teachers):
                renew = True
                for pair in self._pairs:
                    self._kept[pair.name].teacher = deepcopy(pair.teacher.state_dict())
        if self._refresh is not None and renew and not last:
            self._renew(epoch + 1)
        left = (time.monotonic() - self._begun) / since * (self._epochs.stop - epoch - 1)
        for record in self._records:
            record["accuracy"] = students.get(str(record["backbone"]))
            record["teachers_accuracy"] = teachers  # of their mean logits, whose new best renews pseudo-labels
            progress.epoch(**record, seconds_left=left)
        self.done.history += self._records
        self.epoch, self._records = epoch + 1, []

    def end(self) -> None:
        """Takes the best validated weights, where these are wanted."""
        if self._keeps:
            for pair in self._pairs:
                pair.student.load_state_dict(self._kept[pair.name].student)
                pair.teacher.load_state_dict(self._kept[pair.name].teacher)

    def _epoch_of(self, k: int) -> PairEpoch:
        """The k-th backbone's epoch, at its first step."""
        seed = fold_seed(self._settings.seed, self._fold) * 31 + k
        return PairEpoch(
            self._pairs[k],
            self._replicas[k],
            self._images,
            self._wells,
            self._settings.mean_teacher,
            self._schedule,
            self.epoch,
            self.done.pseudo_W,
            seed,
            self._slots,
        )

    def _renew(self, epoch: int) -> None:
        assert self._refresh is not None
        self.done.pseudo_W = self._refresh(epoch)
        self.done.refreshes.append(epoch)

    def _validate(self) -> tuple[dict[str, float], float]:
        """Accuracy of each student, and of the teachers' mean logits; keeps the best students."""
        students = {}
        teachers_WK = np.zeros((len(self._validation), self._classes))
        for pair in self._pairs:
            students[pair.name] = self._score(self._logits(pair.student))
            teachers_WK += self._logits(pair.teacher)
            if self._selects and self._kept[pair.name].best.improved(students[pair.name]):
                self._kept[pair.name].student = deepcopy(pair.student.state_dict())
        return students, self._score((teachers_WK / len(self._pairs)).astype(np.float32))

    def _logits(self, network: torch.nn.Module) -> NDArray[np.float32]:
        size = self._settings.predict.batch_size
        return well_logits(network, self._images, self._validation, 1, size, self._classes)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; every process must ask."""
        return {
            "epoch": self.epoch,
            "statistics": statistics_of_all(self._networks, self._images.team),
            "pairs": [
                {"student": pair.student.state_dict(), "teacher": pair.teacher.state_dict(), "step": pair.step}
                for pair in self._pairs
            ],
            "kept": [
                {"student": kept.student, "teacher": kept.teacher, "best": float(kept.best.score)}
                for kept in self._kept.values()
            ],
            "best_teachers": float(self._best_teachers.score),
            "records": self._records,
            "current": None if self._current is None else self._current.state(),
            "history": self.done.history,
            "refreshes": self.done.refreshes,
            "pseudo_W": self.done.pseudo_W,
            "refresh": None if self._refresh is None else self._refresh.state(),
            "seconds": time.monotonic() - self._begun,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts everything back to what `state` told."""
        for pair, own in zip(self._pairs, state["pairs"], strict=True):
            pair.student.load_state_dict(own["student"])
            pair.teacher.load_state_dict(own["teacher"])
            pair.step = own["step"]
        restore_statistics(self._networks, state["statistics"], self._images.team)
        for kept, own in zip(self._kept.values(), state["kept"], strict=True):
            kept.student, kept.teacher, kept.best.score = own["student"], own["teacher"], own["best"]
        self._best_teachers.score = state["best_teachers"]
        self.epoch, self._records = state["epoch"], list(state["records"])
        pseudo_W = state["pseudo_W"]
        self.done = EpochsRun(
            list(state["history"]),
            list(state["refreshes"]),
            None if pseudo_W is None else pseudo_W.to(self._images.device),
        )
        if self._refresh is not None:
            self._refresh.restore(state["refresh"])
        if state["current"] is not None:
            self._current = self._epoch_of(len(self._records))
            self._current.restore(state["current"])
        self._begun = time.monotonic() - state["seconds"]
