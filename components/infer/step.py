"""infer: a fold's trained networks in, logits of one cell type out. Reads and writes; the method is core.learning.prediction.

It follows training that ends before `pseudo_label`, which predicts itself: with finetuned pairs, or pretrained backbones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from components.core.config import parse
from components.core.errors import InputError
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.fold_data import fold_wells, open_images
from components.core.learning.network import Classifier, pick_device, prepare
from components.core.learning.prediction import Pieces, fold_meta, held_out_images, predict_fold, predicting
from components.core.learning.step_settings import PREDICTING_CODE, TRAINING_CODE, InferSettings
from components.core.learning.team import Team
from components.core.learning.weight_files import (
    check_finetuned,
    load_pairs,
    load_pretrained,
    read_meta,
    weights_digest,
)
from components.core.storage.finished import code_digest
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.run_record import record_fold
from components.core.training_step import start_processes, training_step


def run(
    settings: InferSettings,
    store: ObjectReader,
    screen: Manifest,
    holdout: Manifest,
    bases: Sequence[Path],
    fold: int,
    cell_type: str,
    logits: Path,
    embeddings: Path,
    checkpoints: Checkpoints | None = None,
    team: Team | None = None,
) -> None:
    """Predicts the fold's out-of-fold wells, the unlabelled and the held-out ones, and embeds all wells.

    Args:
        settings: the configuration's part that this step reads.
        store: where the packed plates are.
        screen: the manifest.
        holdout: the held-out experiments; it carries no treatment labels.
        bases: finetune's output, or pretrain's, one of each backbone, any order.
        fold: the fold that the networks were trained for.
        cell_type: whose wells.
        logits: folder to write: logits.npz and meta.json.
        embeddings: folder to write: Parquet files, see core.storage.embeddings.
        checkpoints: where prediction is saved by time; None saves none.
        team: the processes that share the work; None for this one alone.

    Raises:
        InputError: weights of another fold or cell type, or not one of each backbone.
    """
    device = pick_device()
    classes = len(screen.vocabulary.classes)
    networks, weights, history = _load(settings, bases, fold, cell_type, classes, screen.channels, device)
    for network in networks.values():
        prepare(network, settings.compute, device)
    checkpoints = checkpoints or Checkpoints()
    saved = checkpoints.resume()
    images = open_images(settings, screen, store, device, team)
    wells = fold_wells(images.table, fold, settings.screen.controls, cell_type)
    held_out = held_out_images(holdout, screen, cell_type, store, settings, device, team)
    pieces = Pieces(checkpoints, found=saved["pieces"] if saved else None)
    predicted = predict_fold(networks, screen, images, wells, held_out, cell_type, settings, pieces)
    meta = fold_meta(cell_type, fold, bool(len(wells.validation)), history)
    predicted.write(logits, embeddings, meta, settings, weights)


def _load(
    settings: InferSettings,
    bases: Sequence[Path],
    fold: int,
    cell_type: str,
    classes: int,
    channels: int,
    device: torch.device,
) -> tuple[dict[str, Classifier], str, list[dict[str, Any]]]:
    """The networks that predict by backbone, whose weights they are, and the records of all their epochs."""
    if "backbone" in read_meta(bases[0]):
        networks, history = load_pretrained(bases, fold, settings, classes, channels, device)
        return networks, "pretrained", history
    if len(bases) != 1:
        raise InputError(f"{bases[1]}: finetune's output holds all backbones; give it alone")
    check_finetuned(bases[0], fold, cell_type)
    pairs, history = load_pairs(bases[0], settings, classes, channels, device)
    return predicting(pairs, settings), settings.predict.weights, history


def main(
    config: str,
    screen: str,
    holdout: str,
    bases: Sequence[str],
    fold: int,
    cell_type: str,
    logits: str,
    embeddings: str,
) -> None:
    """The step with paths and JSON, as the pipeline calls it; finished work is copied from the store."""
    if start_processes("infer", config, locals()):
        return
    settings = parse(InferSettings, json.loads(config), "config")
    with training_step("infer", settings.compute, screen, fold=fold, cell_type=cell_type) as step:
        held_out, folders = Manifest.read(Path(holdout)), [Path(base) for base in bases]
        step.run_once(
            {
                "settings": settings.fingerprint(),
                "screen": step.screen.digest(),
                "holdout": held_out.digest(),
                "bases": " ".join(sorted(weights_digest(base) for base in folders)),
                "code": code_digest(*TRAINING_CODE, *PREDICTING_CODE, "components.infer"),
            },
            {"logits": logits, "embeddings": embeddings},
            lambda out, checkpoints: run(
                settings,
                step.store,
                step.screen,
                held_out,
                folders,
                fold,
                cell_type,
                out["logits"],
                out["embeddings"],
                checkpoints,
                step.team,
            ),
            lambda key: record_fold(step.store, step.screen, held_out, cell_type, fold, key),
        )
