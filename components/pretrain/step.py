"""pretrain: the packed screen in, one backbone's weights out. Reads and writes; the method is core.learning.supervised."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from components.core import progress
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.crops import network_input
from components.core.learning.device import pick_device
from components.core.learning.fold_data import open_fold
from components.core.learning.initial_weights import copy_pretrained, load_initial_weights
from components.core.learning.network import Classifier
from components.core.learning.step_settings import TRAINING_CODE, PretrainSettings
from components.core.learning.supervised import SupervisedTraining
from components.core.learning.team import ALONE, Team
from components.core.learning.warm_start import learned_by
from components.core.learning.weight_files import save_weights
from components.core.storage.artifacts import local_file
from components.core.storage.digests import code_digest, digest_file
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import Learned
from components.core.training_step import training_step
from components.pretrain.start import Start, open_start


def run(
    settings: PretrainSettings,
    store: ObjectStore,
    screen: Manifest,
    fold: int,
    backbone: str,
    weights: Path,
    initial: Path | None = None,
    checkpoints: Checkpoints | None = None,
    team: Team = ALONE,
    start: Start | None = None,
) -> None:
    """Trains one backbone on all cell types of a fold; writes weights.safetensors, history.json and meta.json into a folder.

    Training starts from a file of `initial` weights or from an earlier run's (`start`), else at random.

    Raises:
        InputError: weights to start from that cannot be read or have another architecture.
    """
    seed = settings.backbone_seed(fold, backbone)
    torch.manual_seed(seed)
    classes = len(screen.vocabulary.classes)
    config = settings.backbone(backbone)
    channels, side, cell_types = network_input(settings.screen, screen)
    network = Classifier(config, settings.head, classes, channels, side, cell_types)
    started: dict[str, Any] = {}
    if initial is not None:
        source = config.weights or str(initial)
        found = load_initial_weights(network.backbone, config, initial, channels, side, source)
        # Half of a network's weights are rarely what was meant, but may be.
        (progress.note if found.expected else progress.warn)(found.sentence(backbone, source))
        started["initial_weights"] = {**asdict(found), "sha256": digest_file(initial)}
    if start is not None:
        copied = copy_pretrained(network, start.file, start.classes, screen.vocabulary.classes, start.label)
        (progress.note if copied.known else progress.warn)(copied.sentence(backbone, start.label))
        started["init_from"] = {
            "run": start.run,
            "fold": fold,
            "backbone": backbone,
            "sha256": digest_file(start.file),
            "known_classes": len(copied.known),
            "new_classes": copied.new,
            "left_out_classes": copied.left_out,
        }
    data = open_fold(settings, screen, store, fold, settings.pretrain.selection, team=team)
    training = SupervisedTraining(network.to(pick_device()), data, settings.pretrain, seed, settings.compute)
    training.run(lambda record: progress.epoch(**record, backbone=backbone), checkpoints)
    save_weights(network, weights / "weights.safetensors")
    labels = {"step": "pretrain", "fold": fold, "cell_type": None, "backbone": backbone}
    history = [
        {**labels, **{name: value for name, value in record.items() if name != "seconds_left"}}
        for record in training.history
    ]
    (weights / "history.json").write_text(json.dumps(history))
    (weights / "meta.json").write_text(json.dumps({**labels, "validated": bool(len(data.wells.validation)), **started}))


def main(screen: str, fold: int, backbone: str, weights: str, config: str = "") -> None:
    """The step on paths, as the pipeline calls it; `config` is RunConfig as JSON, instead of the manifest's.

    Finished work is copied from the store.
    """
    with training_step("pretrain", PretrainSettings, locals()) as step:
        if step is None:
            return
        settings, manifest = step.settings, step.screen
        with (
            local_file(settings.backbone(backbone).weights) as initial,
            open_start(settings, step.store, manifest, fold, backbone) as start,
        ):
            work = partial(run, settings, step.store, manifest, fold, backbone)
            step.run_once(
                {
                    "settings": settings.fingerprint_of(backbone),
                    "screen": manifest.digest(),
                    "initial_weights": digest_file(initial) if initial else "",
                    "init_from": start.digest() if start else "",
                    "code": code_digest(*TRAINING_CODE, "components.pretrain"),
                },
                {"weights": weights},
                lambda out, checkpoints: work(out["weights"], initial, checkpoints, step.team, start),
                learned=learned_by(manifest, fold) | (start.learned if start else Learned()),
            )
