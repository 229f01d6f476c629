"""pseudo_label: finetuned pairs of one cell type in, final pairs and the fold's logits out.

Reads and writes; the method is core.learning (mean teacher, inference) and core.prior (pseudo-labels).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from components.core.learning.checkpoints import Checkpoints
from components.core.learning.crops import network_input
from components.core.learning.device import pick_device
from components.core.learning.fold_data import open_fold
from components.core.learning.mean_teacher_run import MeanTeacherTraining
from components.core.learning.prediction import (
    Pieces,
    fold_meta,
    held_out_images,
    predict_fold,
    predicting_networks,
    sphering,
)
from components.core.learning.pseudo_labeller import PseudoLabeller
from components.core.learning.schedules import CycleSchedule
from components.core.learning.step_settings import PREDICTING_CODE, TRAINING_CODE, MeanTeacherSettings
from components.core.learning.team import ALONE, Team
from components.core.learning.weight_files import check_finetuned, load_pairs, save_pairs, weights_digest
from components.core.storage.artifacts import local_file
from components.core.storage.digests import code_digest, digest_file
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.training_step import training_step


def run(
    settings: MeanTeacherSettings,
    store: ObjectStore,
    screen: Manifest,
    holdout: Manifest,
    base: Path,
    fold: int,
    cell_type: str,
    weights: Path,
    logits: Path,
    embeddings: Path,
    fused: Path | None = None,
    checkpoints: Checkpoints | None = None,
    team: Team = ALONE,
) -> None:
    """Trains through the remaining cycles with pseudo-labels, then predicts.

    Args:
        settings: the step's configuration.
        store: the store of the packed plates.
        screen: the manifest.
        holdout: the held-out experiments, without treatment labels, which only prediction reads.
        base: output of finetune.
        fold: the fold whose experiments validate.
        cell_type: the cell type to train on.
        weights: folder to write, see core.learning.weight_files; also pseudo_labels.csv.
        logits: folder to write: logits.npz and meta.json.
        embeddings: folder to write: Parquet files, see core.storage.arrays.
        fused: an earlier run's predictions of the unlabelled wells, see core.prior.pseudo_labels; None without.
        checkpoints: where training and prediction are saved by time; None saves none.
        team: the processes that share the work.

    Raises:
        InputError: fused labels that do not match the screen, or a base of another fold or cell type, which may have
            learned this fold's labels.
    """
    check_finetuned(base, fold, cell_type)
    device = pick_device()
    classes = len(screen.vocabulary.classes)
    config = settings.mean_teacher
    schedule = CycleSchedule.of(config, cell_type)
    pairs, history = load_pairs(base, settings, classes, network_input(settings.screen, screen), device)
    data = open_fold(settings, screen, store, fold, config.selection, cell_type, team)
    images, wells = data.images, data.wells
    seed, epochs = settings.fold_seed(fold), range(schedule.cut, schedule.total)
    labeller = PseudoLabeller(pairs, images, wells.hidden, screen, data.groups, settings, epochs, seed, fused)
    torch.manual_seed(seed)
    checkpoints = checkpoints or Checkpoints()
    saved = checkpoints.resume()
    pieces = None if saved is None else saved.get("pieces")
    training = MeanTeacherTraining(
        pairs,
        data,
        settings,
        epochs,
        cell_type,
        fold,
        refresh=labeller if len(wells.hidden) else None,
        keep_best=True,
    )
    training.run(checkpoints, saved if saved is None or pieces is None else saved["training"])
    labels: dict[str, Any] = {"step": "pseudo_label", "fold": fold, "cell_type": cell_type}
    history += [{**labels, **record} for record in training.history]
    validated = bool(len(wells.validation))
    save_pairs(pairs, weights, schedule.total, history, **labels, validated=validated, refreshes=training.refreshes)
    labeller.write(weights / "pseudo_labels.csv")

    held_out = held_out_images(holdout, screen, cell_type, store, settings, device, team)
    predicted = predict_fold(
        predicting_networks(pairs, settings),
        screen,
        images,
        wells,
        held_out,
        cell_type,
        settings,
        Pieces(checkpoints, lambda: {"training": training.state()}, pieces),
    )
    meta = fold_meta(cell_type, fold, validated, history)
    predicted.write(logits, embeddings, meta, settings, settings.predict.weights)


def main(
    screen: str,
    holdout: str,
    base: str,
    fold: int,
    cell_type: str,
    weights: str,
    logits: str,
    embeddings: str,
    config: str = "",
) -> None:
    """The step on paths, as the pipeline calls it; `config` is RunConfig as JSON, instead of the manifest's.

    Finished work is copied from the store.
    """
    with training_step("pseudo_label", MeanTeacherSettings, locals()) as step:
        if step is None:
            return
        settings = step.settings
        with local_file(settings.mean_teacher.fused_labels) as fused:
            held_out = Manifest.read(Path(holdout))
            work = partial(run, settings, step.store, step.screen, held_out, Path(base), fold, cell_type)
            step.run_once(
                {
                    "settings": settings.unsphered().fingerprint(),
                    "screen": step.screen.digest(),
                    "holdout": held_out.digest(),
                    "base": weights_digest(Path(base)),
                    "fused_labels": digest_file(fused) if fused else "",
                    "code": code_digest(*TRAINING_CODE, *PREDICTING_CODE, "components.pseudo_label"),
                },
                {"weights": weights, "logits": logits, "embeddings": embeddings},
                lambda out, checkpoints: work(
                    out["weights"], out["logits"], out["embeddings"], fused, checkpoints, step.team
                ),
                holdout=held_out,
                sphering=sphering(settings),
            )
