"""pseudo_label: finetuned pairs of one cell type in, final pairs and the fold's logits out.

Reads and writes; the method is core.learning (mean teacher, inference) and core.prior (pseudo-labels).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.core import progress
from components.core.config import parse
from components.core.learning.fold_data import fold_wells, open_images
from components.core.learning.inference import Images, adaptive_logits
from components.core.learning.mean_teacher import Pair, Wells
from components.core.learning.mean_teacher_run import train_epochs
from components.core.learning.network import pick_device
from components.core.learning.pair_files import check_finetuned, load_pairs, save_pairs, weights_digest
from components.core.learning.prediction import fold_meta, held_out_images, predict_fold, predicting
from components.core.learning.schedules import CycleSchedule
from components.core.learning.step_settings import (
    PREDICTING_CODE,
    TRAINING_CODE,
    MeanTeacherSettings,
    library_versions,
)
from components.core.learning.validation import groups_of_fold, score_of
from components.core.prior.fused_labels import FusedLabels, read_fused_labels
from components.core.prior.plate_groups import PlateGroups
from components.core.prior.pseudo_labels import PseudoLabels, select
from components.core.storage.artifacts import local_file
from components.core.storage.digests import digest_file
from components.core.storage.finished import code_digest, run_once
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.opening import open_store
from components.core.storage.run_record import record_fold


class PseudoLabeller:
    """Makes pseudo-labels of the unlabelled wells from the mean of the teachers, remembering the last blend.

    Args:
        pairs: whose teachers judge.
        images: the screen's images.
        wells: unlabelled wells, rows of the well table.
        screen: the manifest.
        groups: learned from the fold's training experiments; None without a plate design.
        settings: passes, blend and prior.
        seed: of views and sites.
        fused: file of an earlier run's names of the unlabelled wells, which stay their labels; None labels them anew.
    """

    def __init__(
        self,
        pairs: list[Pair],
        images: Images,
        wells: NDArray[np.intp],
        screen: Manifest,
        groups: PlateGroups | None,
        settings: MeanTeacherSettings,
        seed: int,
        fused: Path | None = None,
    ) -> None:
        table = images.table
        # Plate order, so that a batch holds one plate and BatchNorm in train mode adapts to it.
        self.wells = wells[np.argsort(table.plate_W[wells], kind="stable")]
        self._pairs, self._images, self._screen, self._groups, self._settings = pairs, images, screen, groups, settings
        self._seed = seed
        self._experiments = [table.experiments[e] for e in table.experiment_W[self.wells]]
        self._plates = [int(p) for p in table.plate_number_P[table.plate_W[self.wells]]]
        self._fused: FusedLabels | None = None
        if fused is not None:
            self._fused = read_fused_labels(
                fused,
                [str(id_code) for id_code in table.id_code_W[self.wells]],
                table.class_W[self.wells] < 0,
                self._experiments,
                self._plates,
                screen.vocabulary.treatments,
                settings.mean_teacher.fused_labels,
            )
        self.last: PseudoLabels | None = None
        self._refreshes = 0
        self._told: set[str] = set()

    def __call__(self, epoch: int) -> Tensor:
        """Pseudo-labels before an epoch for every row of the well table: classes, -1 where none, or soft ones (W, K)."""
        config = self._settings.mean_teacher
        classes = len(self._screen.vocabulary.classes)
        rng = np.random.default_rng((self._seed, epoch))
        generator = torch.Generator(self._images.device).manual_seed(int(rng.integers(2**62)))
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
        fraction = config.confident_fractions[min(self._refreshes, len(config.confident_fractions) - 1)]
        self.last = select(
            (mean_WK / len(self._pairs))[:, :treatments].astype(np.float32),
            self._experiments,
            self._plates,
            self._groups,
            self._settings.prior,
            previous_WK=None if self.last is None else self.last.logits_WK,
            blend=config.pseudo_label_blend,
            fraction=fraction,
        )
        if self._fused is not None:
            self.last = self._fused.over(self.last, fraction)
        self._refreshes += 1
        for experiment, arrangement in self.last.arrangements.items():
            if arrangement.problem and experiment not in self._told:
                self._told.add(experiment)
                progress.warn(f"{arrangement.problem}; its pseudo-labels are of all treatments")
        labelled = int((self.last.class_W >= 0).sum())
        progress.note(f"pseudo-labels of {labelled} wells made anew before epoch {epoch + 1}")
        rows = torch.from_numpy(self.wells)
        if config.pseudo_labels == "soft":
            # Controls are no pseudo-label: their classes come after the treatments.
            pseudo_WK = torch.zeros((self._images.table.wells, classes))
            pseudo_WK[rows, :treatments] = torch.from_numpy(self.last.prob_WK)
            return pseudo_WK.to(self._images.device)
        pseudo_W = torch.full((self._images.table.wells,), -1, dtype=torch.long)
        pseudo_W[rows] = torch.from_numpy(self.last.class_W).long()
        return pseudo_W.to(self._images.device)


def run(
    settings: MeanTeacherSettings,
    store: ObjectReader,
    screen: Manifest,
    holdout: Manifest,
    base: Path,
    fold: int,
    cell_type: str,
    weights: Path,
    logits: Path,
    embeddings: Path,
    fused: Path | None = None,
) -> None:
    """Trains through the remaining cycles with pseudo-labels, then predicts.

    Args:
        settings: the configuration's part that this step reads.
        store: where the packed plates are.
        screen: the manifest.
        holdout: the held-out experiments, read after training, for prediction alone; it carries no treatment labels.
        base: output of finetune.
        fold: the fold whose experiments validate.
        cell_type: whose wells.
        weights: folder to write, see core.learning.pair_files; also pseudo_labels.csv.
        logits: folder to write: logits.npz and meta.json.
        embeddings: folder to write: Parquet files, see core.storage.embeddings.
        fused: file of an earlier run's names of the unlabelled wells, see core.prior.fused_labels; None without.

    Raises:
        InputError: fused labels that do not fit the screen, or a base of another fold or cell type: it may have learned
            this fold's labels.
    """
    check_finetuned(base, fold, cell_type)
    device = pick_device()
    classes = len(screen.vocabulary.classes)
    config = settings.mean_teacher
    schedule = CycleSchedule.of(config, cell_type)
    pairs, history = load_pairs(base, settings, classes, screen.channels, device)
    images = open_images(
        screen, store, settings.standardise, settings.augment, settings.loader, device, batch_norm=settings.batch_norm
    )
    wells = fold_wells(images.table, fold, settings.screen.controls, cell_type)
    groups = groups_of_fold(screen, fold, settings.prior)
    unlabelled = np.concatenate([wells.validation, wells.unlabelled])
    labeller = PseudoLabeller(pairs, images, unlabelled, screen, groups, settings, settings.seed * 1009 + fold, fused)
    torch.manual_seed(settings.seed * 1009 + fold)
    trained = train_epochs(
        pairs=pairs,
        images=images,
        wells=Wells(wells.training, unlabelled),
        validation=wells.validation,
        score=score_of(images.table, screen, wells.validation, groups, settings.prior, config.selection),
        settings=settings,
        classes=classes,
        epochs=range(schedule.cut, schedule.total),
        cell_type=cell_type,
        fold=fold,
        refresh=labeller if len(unlabelled) else None,
        keep_best=True,
    )
    labels: dict[str, Any] = {"step": "pseudo_label", "fold": fold, "cell_type": cell_type}
    history += [{**labels, **record} for record in trained.history]
    validated = bool(len(wells.validation))
    save_pairs(pairs, weights, schedule.total, history, **labels, validated=validated, refreshes=trained.refreshes)
    _write_pseudo_labels(weights / "pseudo_labels.csv", labeller, images, screen)

    held_out = held_out_images(holdout, screen, cell_type, store, settings, device)
    predicted = predict_fold(predicting(pairs, settings), screen, images, wells, held_out, cell_type, settings)
    meta = fold_meta(cell_type, fold, validated, history)
    predicted.write(logits, embeddings, meta, settings, settings.predict.weights)


def _write_pseudo_labels(path: Path, labeller: PseudoLabeller, images: Images, screen: Manifest) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id_code", "sirna", "confidence"])
        if labeller.last is None:
            return
        for well, label, confidence in zip(
            labeller.wells, labeller.last.class_W, labeller.last.confidence_W, strict=True
        ):
            sirna = screen.vocabulary.treatments[label] if label >= 0 else ""
            writer.writerow([images.table.id_code_W[well], sirna, f"{confidence:.6f}"])


def main(
    config: str,
    screen: str,
    holdout: str,
    base: str,
    fold: int,
    cell_type: str,
    weights: str,
    logits: str,
    embeddings: str,
) -> None:
    """The step with paths and JSON, as the pipeline calls it; finished work is fetched instead of done again."""
    with progress.task("pseudo_label", fold=fold, cell_type=cell_type):
        settings = parse(MeanTeacherSettings, json.loads(config), "config")
        manifest, held_out = Manifest.read(Path(screen)), Manifest.read(Path(holdout))
        store = open_store(manifest.store)
        with local_file(settings.mean_teacher.fused_labels) as fused:
            run_once(
                store,
                "pseudo_label",
                {
                    "settings": settings.fingerprint(),
                    "screen": manifest.digest(),
                    "holdout": held_out.digest(),
                    "base": weights_digest(Path(base)),
                    "fold": str(fold),
                    "cell_type": cell_type,
                    "code": code_digest(*TRAINING_CODE, *PREDICTING_CODE, "components.pseudo_label"),
                    "libraries": library_versions(),
                    **({"fused_labels": digest_file(fused)} if fused else {}),
                },
                {"weights": Path(weights), "logits": Path(logits), "embeddings": Path(embeddings)},
                lambda out: run(
                    settings,
                    store,
                    manifest,
                    held_out,
                    Path(base),
                    fold,
                    cell_type,
                    out["weights"],
                    out["logits"],
                    out["embeddings"],
                    fused,
                ),
                finished=lambda place: record_fold(store, manifest, held_out, cell_type, fold, place),
            )
