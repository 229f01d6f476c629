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
from components.core.errors import InputError
from components.core.learning.fold_data import fold_wells, open_images
from components.core.learning.inference import Images, adaptive_logits, well_logits
from components.core.learning.mean_teacher import Pair, Wells
from components.core.learning.mean_teacher_run import train_epochs
from components.core.learning.network import pick_device
from components.core.learning.pair_files import load_pairs, save_pairs, weights_digest
from components.core.learning.schedules import CycleSchedule
from components.core.learning.step_settings import TRAINING_CODE, MeanTeacherSettings, library_versions
from components.core.learning.validation import groups_of_fold, score_of
from components.core.prior.plate_groups import PlateGroups
from components.core.prior.pseudo_labels import PseudoLabels, select
from components.core.screen.site_table import TREATMENT
from components.core.storage.finished import code_digest, run_once
from components.core.storage.interface import ObjectReader
from components.core.storage.logits import LogitsDirectory, WellLogits, write_logits
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore


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
    ) -> None:
        table = images.table
        # Plate order, so that a batch holds one plate and BatchNorm in train mode adapts to it.
        self.wells = wells[np.argsort(table.plate_W[wells], kind="stable")]
        self._pairs, self._images, self._screen, self._groups, self._settings = pairs, images, screen, groups, settings
        self._seed = seed
        self._experiments = [table.experiments[e] for e in table.experiment_W[self.wells]]
        self._plates = [int(p) for p in table.plate_number_P[table.plate_W[self.wells]]]
        self.last: PseudoLabels | None = None

    def __call__(self, epoch: int) -> Tensor:
        """Pseudo-labels before an epoch: a class for every row of the well table, -1 for wells that need none."""
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
        self.last = select(
            (mean_WK / len(self._pairs))[:, :treatments].astype(np.float32),
            self._experiments,
            self._plates,
            self._groups,
            self._settings.prior,
            previous_WK=None if self.last is None else self.last.logits_WK,
            blend=config.pseudo_label_blend,
        )
        pseudo_W = torch.full((self._images.table.wells,), -1, dtype=torch.long)
        pseudo_W[torch.from_numpy(self.wells)] = torch.from_numpy(self.last.class_W).long()
        progress.note(f"pseudo-labels made anew before epoch {epoch + 1}")
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

    Raises:
        InputError: a base of another fold or cell type: it may have learned this fold's labels.
    """
    _check_base(base, fold, cell_type)
    device = pick_device()
    classes = len(screen.vocabulary.classes)
    config = settings.mean_teacher
    schedule = CycleSchedule.of(config, cell_type)
    pairs, history = load_pairs(base, settings, classes, screen.channels, device)
    images = open_images(screen, store, settings.standardise, settings.augment, settings.loader, device)
    wells = fold_wells(images.table, fold, settings.screen.controls, cell_type)
    groups = groups_of_fold(screen, fold, settings.prior)
    unlabelled = np.concatenate([wells.validation, wells.unlabelled])
    labeller = PseudoLabeller(pairs, images, unlabelled, screen, groups, settings, settings.seed * 1009 + fold)
    torch.manual_seed(settings.seed * 1009 + fold)
    trained = train_epochs(
        pairs=pairs,
        images=images,
        wells=Wells(wells.training, unlabelled),
        validation=wells.validation,
        score=score_of(images.table, screen, wells.validation, groups, settings.prior, "group"),
        settings=settings,
        classes=classes,
        epochs=range(schedule.cut, schedule.total),
        cell_type=cell_type,
        fold=fold,
        refresh=labeller if len(unlabelled) else None,
    )
    labels: dict[str, Any] = {"step": "pseudo_label", "fold": fold, "cell_type": cell_type}
    history += [{**labels, **record} for record in trained.history]
    validated = bool(len(wells.validation))
    save_pairs(pairs, weights, schedule.total, history, **labels, validated=validated, refreshes=trained.refreshes)
    _write_pseudo_labels(weights / "pseudo_labels.csv", labeller, images, screen)

    outputs = {"oof": (images, wells.validation), "unlabelled": (images, wells.unlabelled)}
    if any(plate.cell_type == cell_type for plate in holdout.plates):
        held_out = open_images(
            holdout, store, settings.standardise, settings.augment, settings.loader, device, reference=screen
        )
        table = held_out.table
        of_type_W = table.cell_type_W == table.cell_types.index(cell_type)
        outputs["holdout"] = (held_out, np.flatnonzero(of_type_W & (table.well_type_W == TREATMENT)))
    else:
        outputs["holdout"] = (images, np.empty(0, dtype=np.intp))
    predicted = {}
    for role, (source, chosen) in outputs.items():
        progress.note(f"predicting {len(chosen)} {role} wells")
        if source is not images:
            images.cache.release()  # two screens in memory at once would take twice loader.cache_gib
        ids = tuple(str(id_code) for id_code in source.table.id_code_W[chosen])
        predicted[role] = WellLogits(ids, _predict(pairs, source, chosen, settings, classes))
    meta = {
        "cell_type": cell_type,
        "fold": fold,
        "folds": [{"fold": fold, "validated": validated}],
        "history": history,
    }
    logits.mkdir(parents=True, exist_ok=True)
    write_logits(logits, LogitsDirectory(predicted, meta))


def _check_base(base: Path, fold: int, cell_type: str) -> None:
    meta = json.loads((base / "meta.json").read_text())
    if (meta["fold"], meta["cell_type"]) != (fold, cell_type):
        raise InputError(
            f"{base}: weights of fold {meta['fold']} and {meta['cell_type']}, expected fold {fold} and {cell_type}"
        )


def _predict(
    pairs: list[Pair], images: Images, wells: NDArray[np.intp], settings: MeanTeacherSettings, classes: int
) -> NDArray[np.float32]:
    """Mean logits over sites, views and backbones, shape (W, K)."""
    if len(wells) == 0:
        return np.empty((0, classes), dtype=np.float32)
    predict = settings.predict
    total_WK = np.zeros((len(wells), classes), dtype=np.float64)
    for pair in pairs:
        network = pair.student if predict.weights == "student" else pair.teacher
        total_WK += well_logits(network, images, wells, predict.views, predict.batch_size, classes)
    return (total_WK / len(pairs)).astype(np.float32)


def _write_pseudo_labels(path: Path, labeller: PseudoLabeller, images: Images, screen: Manifest) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id_code", "sirna", "confidence"])
        if labeller.last is None:
            return
        for well, label, confidence in zip(
            labeller.wells, labeller.last.class_W, labeller.last.confidence_W, strict=True
        ):
            sirna = screen.vocabulary.treatments[label]
            writer.writerow([images.table.id_code_W[well], sirna, f"{confidence:.6f}"])


def main(
    config: str, screen: str, holdout: str, base: str, fold: int, cell_type: str, weights: str, logits: str
) -> None:
    """The step with paths and JSON, as the pipeline calls it; finished work is fetched instead of done again."""
    with progress.task("pseudo_label", fold=fold, cell_type=cell_type):
        settings = parse(MeanTeacherSettings, json.loads(config), "config")
        manifest, held_out = Manifest.read(Path(screen)), Manifest.read(Path(holdout))
        store = ObjectStore.connect(manifest.store)
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
                "code": code_digest(*TRAINING_CODE, "components.pseudo_label"),
                "libraries": library_versions(),
            },
            {"weights": Path(weights), "logits": Path(logits)},
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
            ),
        )
