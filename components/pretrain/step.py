"""pretrain: the packed screen in, one backbone's weights out. Reads and writes; the method is core.learning.supervised."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from components.core import progress
from components.core.config import parse
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.fold_data import configured_images, fold_wells
from components.core.learning.initial_weights import load_initial_weights, take_over
from components.core.learning.network import Classifier, pick_device
from components.core.learning.step_settings import TRAINING_CODE, PretrainSettings
from components.core.learning.supervised import Validation, train_supervised
from components.core.learning.team import Team
from components.core.learning.training_metrics import groups_of_fold, score_of
from components.core.learning.warm_start import learned_by
from components.core.learning.weight_files import save_weights
from components.core.storage.artifacts import local_file
from components.core.storage.digests import digest_file
from components.core.storage.finished import code_digest
from components.core.storage.interface import ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.opening import open_store
from components.core.storage.run_outcome import tell_failures
from components.core.storage.run_record import Learned, record_step
from components.core.training_step import start_processes, training_step
from components.pretrain.start import Start, started_from


def run(
    settings: PretrainSettings,
    store: ObjectReader,
    screen: Manifest,
    fold: int,
    backbone: str,
    weights: Path,
    initial: Path | None = None,
    checkpoints: Checkpoints | None = None,
    team: Team | None = None,
    start: Start | None = None,
) -> None:
    """Trains one backbone on all cell types of a fold.

    Args:
        settings: the configuration's part that this step reads.
        store: where the packed plates are.
        screen: the manifest.
        fold: the fold whose experiments validate.
        backbone: the configured name.
        weights: folder to write: weights.safetensors, history.json, meta.json.
        initial: file of the weights to start from; None starts at random.
        checkpoints: where the training is saved by time; None saves none.
        team: the processes that share the work; None for this one alone.
        start: an earlier run's weights to start from; None for none.

    Raises:
        InputError: weights to start from that cannot be read, or are of another architecture.
    """
    device = pick_device()
    # Folds and backbones start from different weights, so that their average gains from their differences. The name and
    # not the place in the list counts, so that a second backbone beside it leaves the first one's weights as they are.
    seed = settings.seed * 1009 + fold * 31 + zlib.crc32(backbone.encode()) % 1009
    torch.manual_seed(seed)
    classes = len(screen.vocabulary.classes)
    own = settings.backbone(backbone)
    network = Classifier(own, settings.head, classes, screen.channels, settings.screen.image_size)
    started: dict[str, Any] = {}
    if initial is not None:
        source = own.weights or str(initial)
        found = load_initial_weights(network.backbone, own, initial, screen.channels, source)
        # Half a network's weights are rarely what was meant, but may be.
        (progress.note if found.expected else progress.warn)(found.sentence(backbone, source))
        started["initial_weights"] = {**asdict(found), "sha256": digest_file(initial)}
    if start is not None:
        taken = take_over(network, start.file, start.classes, screen.vocabulary.classes, start.said)
        (progress.note if taken.known else progress.warn)(taken.sentence(backbone, start.said))
        started["init_from"] = {
            "run": start.run,
            "fold": fold,
            "backbone": backbone,
            "sha256": digest_file(start.file),
            "known_classes": len(taken.known),
            "new_classes": taken.new,
            "left_out_classes": taken.left_out,
        }
    network = network.to(device)
    images = configured_images(settings, screen, store, device, team)
    wells = fold_wells(images.table, fold, settings.screen.controls)
    groups = groups_of_fold(screen, fold, settings.prior)
    score = score_of(images.table, screen, wells.validation, groups, settings.prior, settings.pretrain.selection)
    labels = {"step": "pretrain", "fold": fold, "cell_type": None, "backbone": backbone}
    history = train_supervised(
        network,
        images,
        wells.training,
        Validation(wells.validation, score, settings.predict.batch_size, classes),
        settings.pretrain,
        seed,
        lambda record: progress.epoch(**record, backbone=backbone),
        settings.compute,
        checkpoints,
    )
    save_weights(network, weights / "weights.safetensors")
    (weights / "history.json").write_text(json.dumps([{**labels, **_kept(r)} for r in history]))
    (weights / "meta.json").write_text(json.dumps({**labels, "validated": bool(len(wells.validation)), **started}))


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "seconds_left"}


def main(config: str, screen: str, fold: int, backbone: str, weights: str) -> None:
    """The step with paths and JSON, as the pipeline calls it; finished work is fetched instead of done again."""
    if start_processes("pretrain", config, locals()):
        return
    settings = parse(PretrainSettings, json.loads(config), "config")
    with training_step(settings.compute, "pretrain", fold=fold, backbone=backbone) as step:
        manifest = Manifest.read(Path(screen))
        tell_failures(manifest.store, manifest.run)
        store = open_store(manifest.store)
        with (
            local_file(settings.backbone(backbone).weights) as initial,
            started_from(settings, store, manifest, fold, backbone) as start,
        ):
            learned = learned_by(manifest, fold) | (start.learned if start else Learned())
            step.run_once(
                store,
                "pretrain",
                {
                    "settings": settings.fingerprint_of(backbone),
                    "screen": manifest.digest(),
                    "fold": str(fold),
                    "backbone": backbone,
                    **({"initial_weights": digest_file(initial)} if initial else {}),
                    **({"init_from": start.digest()} if start else {}),
                    "code": code_digest(*TRAINING_CODE, "components.pretrain"),
                },
                {"weights": Path(weights)},
                lambda out, checkpoints: run(
                    settings, store, manifest, fold, backbone, out["weights"], initial, checkpoints, step.team, start
                ),
                finished=lambda place: record_step(
                    store, manifest, place, "pretrain", fold, backbone=backbone, learned=learned
                ),
            )
