"""finetune and pseudo_label: mean-teacher training of all backbones side by side, with validation and pseudo-labels. torch only.

"Dual Xception, end to end": the backbones share validation and pseudo-labels, and nothing else. W wells, K class.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from components.core import progress
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.divergence import DivergenceCheck
from components.core.learning.fold_data import FoldData
from components.core.learning.mean_teacher import Pair, PairEpoch
from components.core.learning.network import prepare
from components.core.learning.pseudo_labeller import PseudoLabeller
from components.core.learning.schedules import CycleSchedule, domains_of_step
from components.core.learning.step_settings import MeanTeacherSettings
from components.core.learning.team import Replica, Slots, restore_statistics, statistics_of_all
from components.core.learning.training_metrics import BestWeights


class MeanTeacherTraining:
    """Trains pairs, one of each backbone, in place; can be interrupted after any step.

    Args:
        pairs: the pairs.
        data: images, the fold's wells of the cell type, and the wells that select the weights.
        settings: losses, schedules and inference.
        epochs: epochs to run, counted from the start of finetune.
        cell_type: determines the length of the cycles.
        fold: part of the seed.
        refresh: computes pseudo-labels; None trains without.
        keep_best: True for the training that predicts (pseudo_label, or finetune if none follows): each student ends at
            its best validated epoch, the start included, and the teachers at the epoch at which their mean was best.
            False ends at the last epoch, as do selection `last` and a fold without validation wells.

    Attributes:
        history: one record per epoch and backbone.
        refreshes: epochs before which pseudo-labels were computed.
        pseudo_W: the last pseudo-labels; None without.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        data: FoldData,
        settings: MeanTeacherSettings,
        epochs: range,
        cell_type: str,
        fold: int,
        refresh: PseudoLabeller | None = None,
        keep_best: bool = False,
    ) -> None:
        config = settings.mean_teacher
        images = data.images
        self._pairs, self._data, self._images, self._config, self._refresh = pairs, data, images, config, refresh
        self._epochs, self._seed = epochs, settings.fold_seed(fold)
        self._schedule = CycleSchedule.of(config, cell_type)
        self._networks = [network for pair in pairs for network in (pair.student, pair.teacher)]
        natural = config.mix == "natural"
        # A natural batch may have a single labelled image, which BatchNorm cannot normalise at 1 x 1 pixels.
        self._slots = Slots(images.team, settings.compute.accumulate, self._networks[0].has_neck or natural)
        for network in self._networks:
            prepare(network, settings.compute, images.device)
        wanted = images.batch_norm.domains_per_step
        sizes = {
            "labelled": (config.labelled_batch, data.wells.training),
            "unlabelled": (config.unlabelled_batch, data.wells.hidden),
        }
        self._slots.warn_of_small_parts(
            **{
                f"mean_teacher.{part}_batch": (size, domains_of_step(wells, images.batch_domains, wanted))
                for part, (size, wells) in sizes.items()
            }
        )
        self._replicas = [Replica(pair.student, self._slots) for pair in pairs]
        self._check = DivergenceCheck(
            {f"{role} {pair.name}": getattr(pair, role) for pair in pairs for role in ("student", "teacher")},
            images.team,
            "mean_teacher.learning_rate",
            self._networks[0].autocasts,
        )
        self._selects = keep_best and config.selection != "last" and len(data.validation.wells) > 0
        self._best_students = {pair.name: BestWeights(pair.student) for pair in pairs}
        self._best_teachers = BestWeights(*(pair.teacher for pair in pairs))
        self._current: PairEpoch | None = None
        self._records: list[dict[str, Any]] = []
        """records of the backbones that have finished the current epoch"""
        self._begun = time.monotonic()
        self._epoch = epochs.start
        self.pseudo_W: Tensor | None = None
        self.history: list[dict[str, Any]] = []
        self.refreshes: list[int] = []

    def run(self, checkpoints: Checkpoints | None = None, resumed: Mapping[str, Any] | None = None) -> None:
        """Trains, from the `resumed` state if there is one; saves the state to the checkpoints by time."""
        checkpoints = checkpoints or Checkpoints()
        if resumed is not None:
            self.restore(resumed)
        else:
            if self._refresh is not None:
                self._renew(self._epoch)
            if self._selects:
                self._best_teachers.improved(self._validate()[1])
        while self._epoch < self._epochs.stop:
            self._run_epoch(checkpoints)
        for best in (*self._best_students.values(), self._best_teachers):
            best.load()

    def _run_epoch(self, checkpoints: Checkpoints) -> None:
        """Runs an epoch of all backbones, or the rest of it."""
        config, epoch = self._config, self._epoch
        for k, pair in list(enumerate(self._pairs))[len(self._records) :]:
            if self._current is None:
                self._current = self._pair_epoch(k)
            measured = self._current.run(lambda: checkpoints.save_if_due(self.state))
            self._check_current()
            self._current = None
            self._records.append(
                {"backbone": pair.name, "epoch": epoch + 1, "epochs": self._schedule.total, **measured}
            )
        since = epoch + 1 - self._epochs.start
        last = epoch + 1 == self._epochs.stop
        students: dict[str, float] = {}
        teachers: float | None = None
        # Without selection, pseudo-labels are refreshed at fixed epochs.
        renew = not self._selects and since % config.refresh_epochs == 0
        if len(self._data.validation.wells) and (since % config.validate_every == 0 or last):
            students, teachers = self._validate()
            renew = renew or (self._selects and self._best_teachers.improved(teachers))
        if self._refresh is not None and renew and not last:
            self._renew(epoch + 1)
        elif self._refresh is not None and config.confident_by == "epoch" and not last:
            self.pseudo_W = self._refresh.grown(epoch + 1)
        left = (time.monotonic() - self._begun) / since * (self._epochs.stop - epoch - 1)
        for record in self._records:
            record["accuracy"] = students.get(str(record["backbone"]))
            record["teachers_accuracy"] = teachers  # of their mean logits, whose new best refreshes pseudo-labels
            progress.epoch(**record, seconds_left=left)
        self.history += self._records
        self._epoch, self._records = epoch + 1, []

    def _check_current(self) -> None:
        """Raises InputError if a loss of the current epoch or a weight is not finite."""
        where = f"epoch {self._epoch + 1} of {self._schedule.total}"
        self._check(where, None if self._current is None else self._current.losses)

    def _pair_epoch(self, k: int) -> PairEpoch:
        """The k-th backbone's epoch, at its first step."""
        return PairEpoch(
            self._pairs[k],
            self._replicas[k],
            self._images,
            self._data.wells,
            self._config,
            self._schedule,
            self._epoch,
            self.pseudo_W,
            self._seed * 31 + k,
            self._slots,
        )

    def _renew(self, epoch: int) -> None:
        assert self._refresh is not None
        self.pseudo_W = self._refresh(epoch)
        self.refreshes.append(epoch)

    def _validate(self) -> tuple[dict[str, float], float]:
        """Accuracy of each student, and of the teachers' mean logits; keeps the best students."""
        validation, images = self._data.validation, self._images
        students = {}
        teachers_WK = np.zeros((len(validation.wells), validation.classes))
        for pair in self._pairs:
            students[pair.name] = validation.score(validation.logits(pair.student, images))
            teachers_WK += validation.logits(pair.teacher, images)
            if self._selects:
                self._best_students[pair.name].improved(students[pair.name])
        return students, validation.score((teachers_WK / len(self._pairs)).astype(np.float32))

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; every process must call it.

        Raises:
            InputError: a loss or a weight is not finite.
        """
        self._check_current()
        return {
            "epoch": self._epoch,
            "statistics": statistics_of_all(self._networks, self._images.team),
            "pairs": [
                {"student": pair.student.state_dict(), "teacher": pair.teacher.state_dict(), "step": pair.step}
                for pair in self._pairs
            ],
            "best_students": [best.state() for best in self._best_students.values()],
            "best_teachers": self._best_teachers.state(),
            "records": self._records,
            "current": None if self._current is None else self._current.state(),
            "history": self.history,
            "refreshes": self.refreshes,
            "pseudo_W": self.pseudo_W,
            "refresh": None if self._refresh is None else self._refresh.state(),
            "seconds": time.monotonic() - self._begun,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        for pair, saved in zip(self._pairs, state["pairs"], strict=True):
            pair.student.load_state_dict(saved["student"])
            pair.teacher.load_state_dict(saved["teacher"])
            pair.step = saved["step"]
        restore_statistics(self._networks, state["statistics"], self._images.team)
        for best, saved in zip(self._best_students.values(), state["best_students"], strict=True):
            best.restore(saved)
        self._best_teachers.restore(state["best_teachers"])
        self._epoch, self._records = state["epoch"], list(state["records"])
        self.history, self.refreshes = list(state["history"]), list(state["refreshes"])
        pseudo_W = state["pseudo_W"]
        self.pseudo_W = None if pseudo_W is None else pseudo_W.to(self._images.device)
        if self._refresh is not None:
            self._refresh.restore(state["refresh"])
        if state["current"] is not None:
            self._current = self._pair_epoch(len(self._records))
            self._current.restore(state["current"])
        self._begun = time.monotonic() - state["seconds"]
