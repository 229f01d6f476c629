"""What is measured during training: validation accuracy, which selects checkpoints, and the speed of an epoch.

W wells, K class. The arithmetic of accuracies is evaluation.metrics.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.evaluation.metrics import selection_accuracy
from components.core.learning.inference import Images, well_logits
from components.core.prior.plate_groups import PlateGroups, labelled_treatments, learn_groups
from components.core.progress import warn
from components.core.screen.site_table import SiteTable
from components.core.storage.manifest import Manifest

Score = Callable[[NDArray[np.float32]], float]
"""From validation logits, shape (W, K), to the accuracy that selects a checkpoint."""


class Best:
    """The best score so far; ties keep the earlier one."""

    def __init__(self) -> None:
        self.score = -np.inf

    def improved(self, score: float) -> bool:
        """Whether the score is a new best; if so, it is kept."""
        if score > self.score:
            self.score = score
            return True
        return False


@dataclass(frozen=True)
class Validation:
    """The wells that select the checkpoint; none if the fold holds no experiment back.

    Attributes:
        wells: rows of the well table.
        score: accuracy of their logits.
        batch_size: sites per forward pass.
        classes: K.
    """

    wells: NDArray[np.intp]
    score: Score
    batch_size: int
    classes: int

    def logits(self, network: torch.nn.Module, images: Images) -> NDArray[np.float32]:
        """Logits of the wells from one view of all their sites, shape (W, K)."""
        return well_logits(network, images, self.wells, 1, self.batch_size, self.classes)

    def accuracy(self, network: torch.nn.Module, images: Images) -> float:
        """Score of the network's logits."""
        return self.score(self.logits(network, images))


def groups_of_fold(manifest: Manifest, fold: int, prior: PriorConfig) -> PlateGroups | None:
    """Plate groups learned from the training experiments of a fold; None without prior or without a plate design.

    Raises:
        InputError: folds of single wells, whose plates carry training labels.
    """
    if not prior.enabled:
        return None
    if manifest.split == "well":
        raise InputError(
            "the plate design would reveal held-out wells by their neighbours' labels; set prior.enabled to false"
        )
    training = {experiment for experiment, own in manifest.folds.items() if own != fold}
    try:
        return learn_groups(labelled_treatments(manifest.plates, training), manifest.vocabulary.treatments)
    except InputError as error:
        # A mistake in the plate design must not end a run after hours of training.
        warn(f"fold {fold}: training without the plate design ({error})")
        return None


def score_of(
    table: SiteTable,
    manifest: Manifest,
    wells: NDArray[np.intp],
    groups: PlateGroups | None,
    prior: PriorConfig,
    kind: Literal["balanced", "group", "raw", "last"],
) -> Score:
    """The accuracy of the validation wells' logits over all classes; `last`, which selects nothing, reports `group`."""
    treatments = len(manifest.vocabulary.treatments)
    truth_W = table.class_W[wells].astype(np.intp)
    experiments_W = [table.experiments[e] for e in table.experiment_W[wells]]
    plates_W = [int(p) for p in table.plate_number_P[table.plate_W[wells]]]

    def score(logits_WK: NDArray[np.float32]) -> float:
        return selection_accuracy(
            "group" if kind == "last" else kind,
            logits_WK[:, :treatments],
            truth_W,
            experiments_W,
            plates_W,
            groups,
            prior,
        )

    return score


class EpochMeter:
    """Sites per second, share of time spent waiting for data, and peak memory of an epoch, from its construction on.

    Args:
        images: their loader counts the seconds waited.
        earlier: `state` of the epoch's first part if it was interrupted.
    """

    def __init__(self, images: Images, earlier: tuple[float, float, int] | None = None) -> None:
        self._images = images
        seconds, waited, self._sites = earlier or (0.0, 0.0, 0)
        self._begun = time.monotonic() - seconds
        self._waited = images.cache.waited - waited
        if images.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(images.device)

    def add(self, sites: int) -> None:
        """Counts sites that this process trained on."""
        self._sites += sites

    def state(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and sites so far."""
        return time.monotonic() - self._begun, self._images.cache.waited - self._waited, self._sites

    def measured(self) -> dict[str, float]:
        """The epoch's figures so far; call it when the device has finished its work.

        Returns:
            sites_per_s: sites of all processes per second; seconds; data_wait: share of the seconds in which this process
            waited for pixels; peak_memory_gib: of the GPU during the epoch, or without GPU of this process since its start.
        """
        seconds = time.monotonic() - self._begun
        if self._images.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._images.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "sites_per_s": self._sites * self._images.team.size / seconds,
            "seconds": seconds,
            "data_wait": min(1.0, (self._images.cache.waited - self._waited) / seconds),
            "peak_memory_gib": round(peak / 2**30, 3),
        }
