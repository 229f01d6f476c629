"""finetune: a fold's pretrained backbones in, mean-teacher pairs of one cell type out. The method is core.learning.mean_teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from components.core.config import parse
from components.core.learning.checkpoints import Checkpoints, fold_seed
from components.core.learning.fold_data import configured_images, fold_wells
from components.core.learning.mean_teacher import Pair, Wells
from components.core.learning.mean_teacher_run import train_epochs
from components.core.learning.network import pick_device
from components.core.learning.schedules import CycleSchedule
from components.core.learning.step_settings import TRAINING_CODE, MeanTeacherSettings
from components.core.learning.team import Team
from components.core.learning.training_metrics import groups_of_fold, score_of
from components.core.learning.weight_files import load_pretrained, save_pairs, weights_digest
from components.core.storage.finished import code_digest
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.opening import open_store
from components.core.storage.run_outcome import tell_failures
from components.core.storage.run_record import record_step
from components.core.training_step import start_processes, training_step


def run(
    settings: MeanTeacherSettings,
    store: ObjectReader,
    screen: Manifest,
    bases: Sequence[Path],
    fold: int,
    cell_type: str,
    weights: Path,
    checkpoints: Checkpoints | None = None,
    team: Team | None = None,
) -> None:
    """Trains students and teachers of all backbones through the first cycles, or all of them without pseudo-labels.

    Args:
        settings: the configuration's part that this step reads.
        store: where the packed plates are.
        screen: the manifest.
        bases: outputs of pretrain, one of each backbone, any order.
        fold: the fold whose experiments validate.
        cell_type: whose wells.
        weights: folder to write, see core.learning.weight_files.
        checkpoints: where the training is saved by time; None saves none.
        team: the processes that share the work; None for this one alone.

    Raises:
        InputError: a base of another fold, or not one of each backbone.
    """
    device = pick_device()
    classes = len(screen.vocabulary.classes)
    config = settings.mean_teacher
    torch.manual_seed(fold_seed(settings.seed, fold))
    networks, history = load_pretrained(bases, fold, settings, classes, screen.channels, device)
    pairs = [Pair.start(name, network, config.keep_classifier) for name, network in networks.items()]
    images = configured_images(settings, screen, store, device, team)
    wells = fold_wells(images.table, fold, settings.screen.controls, cell_type)
    groups = groups_of_fold(screen, fold, settings.prior)
    schedule = CycleSchedule.of(config, cell_type)
    run_of_epochs = train_epochs(
        pairs=pairs,
        images=images,
        wells=Wells(wells.training, np.concatenate([wells.validation, wells.unlabelled])),
        validation=wells.validation,
        score=score_of(images.table, screen, wells.validation, groups, settings.prior, config.selection),
        settings=settings,
        classes=classes,
        epochs=range(schedule.cut),
        cell_type=cell_type,
        fold=fold,
        refresh=None,
        # Where no pseudo_label follows, these are the weights that predict.
        keep_best=config.pseudo_labels == "none",
        checkpoints=checkpoints,
        resumed=checkpoints.resume() if checkpoints else None,
    )
    labels = {"step": "finetune", "fold": fold, "cell_type": cell_type}
    history += [{**labels, **record} for record in run_of_epochs.history]
    save_pairs(pairs, weights, schedule.cut, history, **labels, validated=bool(len(wells.validation)))


def main(config: str, screen: str, bases: Sequence[str], fold: int, cell_type: str, weights: str) -> None:
    """The step with paths and JSON, as the pipeline calls it; finished work is fetched instead of done again."""
    if start_processes("finetune", config, locals()):
        return
    settings = parse(MeanTeacherSettings, json.loads(config), "config")
    with training_step(settings.compute, "finetune", fold=fold, cell_type=cell_type) as step:
        manifest = Manifest.read(Path(screen))
        tell_failures(manifest.store, manifest.run)
        store = open_store(manifest.store)
        folders = [Path(base) for base in bases]
        step.run_once(
            store,
            "finetune",
            {
                "settings": settings.finetune_fingerprint(),
                "screen": manifest.digest(),
                "bases": " ".join(sorted(weights_digest(base) for base in folders)),
                "fold": str(fold),
                "cell_type": cell_type,
                "code": code_digest(*TRAINING_CODE, "components.finetune"),
            },
            {"weights": Path(weights)},
            lambda out, checkpoints: run(
                settings, store, manifest, folders, fold, cell_type, out["weights"], checkpoints, step.team
            ),
            finished=lambda place: record_step(store, manifest, place, "finetune", fold, cell_type),
        )
