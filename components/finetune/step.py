"""finetune: a fold's pretrained backbones in, mean-teacher pairs of one cell type out. The method is core.learning.mean_teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from components.core.learning.checkpoints import Checkpoints
from components.core.learning.crops import network_input
from components.core.learning.device import pick_device
from components.core.learning.fold_data import open_fold
from components.core.learning.mean_teacher import Pair
from components.core.learning.mean_teacher_run import MeanTeacherTraining
from components.core.learning.schedules import CycleSchedule
from components.core.learning.step_settings import TRAINING_CODE, MeanTeacherSettings
from components.core.learning.team import ALONE, Team
from components.core.learning.weight_files import base_folders, load_pretrained, save_pairs, weights_digest
from components.core.storage.digests import code_digest
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.training_step import training_step


def run(
    settings: MeanTeacherSettings,
    store: ObjectStore,
    screen: Manifest,
    bases: Sequence[Path],
    fold: int,
    cell_type: str,
    weights: Path,
    checkpoints: Checkpoints | None = None,
    team: Team = ALONE,
) -> None:
    """Trains students and teachers of all backbones through the first cycles, or through all cycles without pseudo-labels.

    `bases` are outputs of pretrain, one of each backbone, in any order; core.learning.weight_files describes the folder `weights`.

    Raises:
        InputError: a base of another fold, or not exactly one of each backbone.
    """
    classes = len(screen.vocabulary.classes)
    config = settings.mean_teacher
    torch.manual_seed(settings.fold_seed(fold))
    networks, history = load_pretrained(
        bases, fold, settings, classes, network_input(settings.screen, screen), pick_device()
    )
    pairs = [Pair.start(name, network, config.keep_classifier) for name, network in networks.items()]
    data = open_fold(settings, screen, store, fold, config.selection, cell_type, team)
    schedule = CycleSchedule.of(config, cell_type)
    training = MeanTeacherTraining(
        pairs,
        data,
        settings,
        range(schedule.cut),
        cell_type,
        fold,
        # If no pseudo_label follows, these weights predict.
        keep_best=config.pseudo_labels == "none",
    )
    training.run(checkpoints, checkpoints.resume() if checkpoints else None)
    labels = {"step": "finetune", "fold": fold, "cell_type": cell_type}
    history += [{**labels, **record} for record in training.history]
    save_pairs(pairs, weights, schedule.cut, history, **labels, validated=bool(len(data.wells.validation)))


def main(screen: str, bases: Sequence[str], fold: int, cell_type: str, weights: str, config: str = "") -> None:
    """The step on paths, as the pipeline calls it; `config` is RunConfig as JSON, instead of the manifest's.

    Finished work is copied from the store.
    """
    with training_step("finetune", MeanTeacherSettings, locals()) as step:
        if step is None:
            return
        settings = step.settings
        folders = base_folders(bases)
        step.run_once(
            {
                "settings": settings.finetune_fingerprint(),
                "screen": step.screen.digest(),
                "bases": " ".join(sorted(weights_digest(base) for base in folders)),
                "code": code_digest(*TRAINING_CODE, "components.finetune"),
            },
            {"weights": weights},
            lambda out, checkpoints: run(
                settings, step.store, step.screen, folders, fold, cell_type, out["weights"], checkpoints, step.team
            ),
        )
