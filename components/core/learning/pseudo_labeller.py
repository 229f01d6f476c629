"""Pseudo-labels of a fold's unlabelled wells, recomputed during training from the mean of the teachers.

W wells, K treatment classes.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core import progress
from components.core.learning.images import Images
from components.core.learning.inference import adaptive_logits
from components.core.learning.mean_teacher import Pair
from components.core.learning.step_settings import MeanTeacherSettings
from components.core.prior.plate_groups import PlateGroups
from components.core.prior.pseudo_labels import FusedLabels, PseudoLabels, read_fused_labels, select
from components.core.storage.manifest import Manifest
from components.core.tables import write_table

_STREAM = zlib.crc32(b"pseudo-labels")
"""Distinguishes these random numbers from those of a training epoch with the same seed."""


class PseudoLabeller:
    """Computes pseudo-labels of the unlabelled wells from the mean of the teachers; remembers the last blend.

    Args:
        pairs: the pairs, whose teachers predict.
        images: the screen's images.
        wells: unlabelled wells, rows of the well table.
        screen: the manifest.
        groups: plate groups learned from the fold's training experiments; None without a plate design.
        settings: passes, blend and prior.
        epochs: the epochs to label, over which the share of labelled wells may grow.
        seed: seed of views and sites.
        fused: an earlier run's predictions of the unlabelled wells, which are their labels throughout; None without.
    """

    def __init__(
        self,
        pairs: list[Pair],
        images: Images,
        wells: NDArray[np.intp],
        screen: Manifest,
        groups: PlateGroups | None,
        settings: MeanTeacherSettings,
        epochs: range,
        seed: int,
        fused: Path | None = None,
    ) -> None:
        table = images.table
        # In plate order, so that a batch holds one plate and BatchNorm in train mode adapts to it.
        self.wells = wells[np.argsort(table.plate_W[wells], kind="stable")]
        self._pairs, self._images, self._screen, self._groups, self._settings = pairs, images, screen, groups, settings
        self._epochs, self._seed = epochs, seed
        self._experiments = [table.experiments[e] for e in table.experiment_W[self.wells]]
        self._plates = table.plate_name_P[table.plate_W[self.wells]].tolist()
        self._fused: FusedLabels | None = None
        if fused is not None:
            self._fused = read_fused_labels(
                fused,
                [str(id_code) for id_code in table.id_code_W[self.wells]],
                table.class_W[self.wells] < 0,
                self._experiments,
                self._plates,
                screen.vocabulary.treatments,
                settings.screen.label_column,
                settings.mean_teacher.fused_labels,
            )
        self.last: PseudoLabels | None = None
        self._refreshes = 0
        self._warned: set[str] = set()

    def __call__(self, epoch: int) -> Tensor:
        """Pseudo-labels before an epoch from new logits of the teachers, see `_labels`."""
        config = self._settings.mean_teacher
        classes = len(self._screen.vocabulary.classes)
        rng = np.random.default_rng((self._seed, epoch, _STREAM))
        team = self._images.team
        # Each process draws the views of its share of the plates.
        generator = torch.Generator().manual_seed(int(rng.integers(2**62, size=team.size)[team.rank]))
        mean_WK = np.zeros((len(self.wells), classes), dtype=np.float64)
        for pair in self._pairs:
            mean_WK += adaptive_logits(
                pair.teacher,
                self._images,
                self.wells,
                config.pseudo_label_passes,
                self._settings.predict.batch_size,
                classes,
                generator,
                rng,
            )
        treatments = len(self._screen.vocabulary.treatments)
        new_WK = (mean_WK / len(self._pairs))[:, :treatments].astype(np.float32)
        self.last = self._select(epoch, new_WK, None if self.last is None else self.last.logits_WK)
        self._refreshes += 1
        for experiment, arrangement in self.last.arrangements.items():
            if arrangement.problem and experiment not in self._warned:
                self._warned.add(experiment)
                progress.warn(f"{arrangement.problem}; its pseudo-labels may be any treatment")
        labelled = int((self.last.class_W >= 0).sum())
        progress.note(f"recomputed pseudo-labels for {labelled} wells before epoch {epoch + 1}")
        return self._labels(self.last)

    def grown(self, epoch: int) -> Tensor:
        """Pseudo-labels before an epoch from the logits of the last refresh, of which there must have been one."""
        assert self.last is not None
        self.last = self._select(epoch, self.last.logits_WK, None)
        return self._labels(self.last)

    def _select(
        self, epoch: int, logits_WK: NDArray[np.float32], previous_WK: NDArray[np.float32] | None
    ) -> PseudoLabels:
        """Labels of the epoch's share of the wells."""
        config = self._settings.mean_teacher
        fractions = config.confident_fractions
        if config.confident_by == "epoch":
            done = (epoch - self._epochs.start) / max(1, len(self._epochs) - 1)
            fraction = float(np.interp(done, np.linspace(0.0, 1.0, len(fractions)), fractions))
        else:
            fraction = fractions[min(self._refreshes, len(fractions) - 1)]
        found = select(
            logits_WK,
            self._experiments,
            self._plates,
            self._groups,
            self._settings.prior,
            previous_WK=previous_WK,
            blend=config.pseudo_label_blend,
            fraction=fraction,
            one_to_one=config.pseudo_label_choice == "assignment",
        )
        return found if self._fused is None else self._fused.over(found, fraction)

    def _labels(self, found: PseudoLabels) -> Tensor:
        """For every row of the well table: classes, -1 for none, or soft labels (W, K)."""
        rows = torch.from_numpy(self.wells)
        if self._settings.mean_teacher.pseudo_labels == "soft":
            classes, treatments = len(self._screen.vocabulary.classes), found.prob_WK.shape[1]
            # Controls are never pseudo-labels: their classes come after the treatments.
            pseudo_WK = torch.zeros((self._images.table.wells, classes))
            pseudo_WK[rows, :treatments] = torch.from_numpy(found.prob_WK)
            return pseudo_WK.to(self._images.device)
        pseudo_W = torch.full((self._images.table.wells,), -1, dtype=torch.long)
        pseudo_W[rows] = torch.from_numpy(found.class_W).long()
        return pseudo_W.to(self._images.device)

    def write(self, path: Path) -> None:
        """Writes the last pseudo-labels as CSV: id_code, the label (empty without one), confidence."""
        label = self._settings.screen.label_column
        columns: dict[str, Any] = {"id_code": [], label: [], "confidence": []}
        if self.last is not None:
            treatments = self._screen.vocabulary.treatments
            columns = {
                "id_code": self._images.table.id_code_W[self.wells],
                label: [treatments[k] if k >= 0 else "" for k in self.last.class_W],
                "confidence": self.last.confidence_W,
            }
        write_table(path, pd.DataFrame(columns))

    def state(self) -> dict[str, Any]:
        """What the next refresh and the table of pseudo-labels need of the last one, as plain data."""
        last = self.last
        found = None
        if last is not None:
            arrays = (last.class_W, last.prob_WK, last.confidence_W, last.logits_WK)
            found = [torch.from_numpy(array) for array in arrays]
        return {"last": found, "refreshes": self._refreshes, "warned": sorted(self._warned)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned; the next refresh infers arrangements again."""
        self.last = None
        if state["last"] is not None:
            class_W, prob_WK, confidence_W, logits_WK = (tensor.numpy() for tensor in state["last"])
            self.last = PseudoLabels(class_W, prob_WK, confidence_W, logits_WK, {})
        self._refreshes, self._warned = state["refreshes"], set(state["warned"])
