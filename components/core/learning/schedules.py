"""Learning rates, EMA decay and ramps as plain functions of epoch and step. Pure Python."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from components.core.config import MeanTeacherConfig


def step_rate(epoch: int, rates: Sequence[float], milestones: Sequence[int]) -> float:
    """Learning rate of an epoch (from 0): rates[k] from milestones[k-1] up to milestones[k]."""
    return rates[bisect_right(milestones, epoch)]


def ema_decay(step: int, epoch: int, decays: Sequence[float], epochs: Sequence[int]) -> float:
    """Decay of the teacher, min(1 - 1/(step + 1), a), a by epoch (Tarvainen & Valpola 2017, arXiv 1703.01780).

    Args:
        step: optimiser steps taken so far, from 1.
        epoch: the epoch, from 1.
        decays: the values of a.
        epochs: last epoch of each value but the last.
    """
    a = decays[sum(epoch > last for last in epochs)]
    return min(1.0 - 1.0 / (step + 1), a)


def ramp(epoch: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t = epoch / length, 1 from there on (Laine & Aila 2017, arXiv 1610.02242)."""
    if length <= 0:
        return 1.0
    t = min(max(epoch / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


@dataclass(frozen=True)
class CycleSchedule:
    """Cosine cycles of equal length, then a constant tail; epochs count from 0.

    Attributes:
        cycle_epochs: epochs of one cycle.
        cut: first epoch of `pseudo_label`; `total` where the configuration has no pseudo-labels.
        total: epochs of `finetune` and `pseudo_label` together.
    """

    config: MeanTeacherConfig
    cycle_epochs: int
    cut: int
    total: int

    @classmethod
    def of(cls, config: MeanTeacherConfig, cell_type: str) -> CycleSchedule:
        """The schedule of a cell type: its ratio shortens the cycles, at least one epoch each."""
        length = max(1, round(config.cycle_epochs * config.ratio.get(cell_type, 1.0)))
        total = length * config.cycles + config.final_epochs
        cut = max(1, round(length * config.finetune_cycles))
        return cls(config, length, total if config.pseudo_labels == "none" else cut, total)

    def rate(self, epoch: float) -> float:
        """Learning rate at a (fractional) epoch: low + (high - low)(1 + cos(pi phase)) / 2 within a cycle."""
        if epoch >= self.cycle_epochs * self.config.cycles:
            return self.config.final_learning_rate
        phase = math.fmod(epoch, self.cycle_epochs) / self.cycle_epochs
        high, low = self.config.learning_rate, self.config.learning_rate_low
        return low + (high - low) * (1.0 + math.cos(math.pi * phase)) / 2.0
