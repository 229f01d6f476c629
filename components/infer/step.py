"""infer: a fold's networks in, logits of one cell type out. Reads and writes; the method is core.learning.prediction.

The networks are finetuned pairs or pretrained backbones of the same run, if training ends before `pseudo_label` (which
predicts as well); for new plates they come from the published model that the screen's manifest names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from components.core.errors import InputError
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.crops import network_input
from components.core.learning.device import pick_device
from components.core.learning.fold_data import fold_wells
from components.core.learning.images import open_images
from components.core.learning.network import Classifier, prepare
from components.core.learning.prediction import (
    Pieces,
    fold_meta,
    held_out_images,
    predict_fold,
    predict_held_out,
    predicting_networks,
    sphering,
)
from components.core.learning.step_settings import PREDICTING_CODE, TRAINING_CODE, InferSettings
from components.core.learning.team import ALONE, Team
from components.core.learning.weight_files import (
    base_folders,
    check_finetuned,
    load_network,
    load_pairs,
    load_pretrained,
    read_meta,
    weights_digest,
)
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.published_models import download_networks, find_model
from components.core.storage.digests import code_digest
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.core.training_step import training_step


@dataclass(frozen=True)
class FoldNetworks:
    """Networks that predict."""

    by_backbone: dict[str, Classifier]  # in the configured order, in which logits are summed
    weights: str  # student, teacher or pretrained
    history: list[dict[str, Any]]  # the records of all epochs that trained them; empty if not known


def run(
    settings: InferSettings,
    store: ObjectStore,
    screen: Manifest,
    holdout: Manifest,
    bases: Sequence[Path],
    fold: int,
    cell_type: str,
    logits: Path,
    embeddings: Path,
    checkpoints: Checkpoints | None = None,
    team: Team = ALONE,
    published: tuple[ObjectStore, ModelManifest] | None = None,
) -> None:
    """Predicts the fold's out-of-fold, unlabelled and held-out wells, or new plates; embeds all wells, controls included.

    Args:
        settings: the sections of the configuration that this step reads.
        store: the store of the packed plates.
        screen: the training screen's manifest, or its reference if new plates are predicted.
        holdout: the held-out experiments or the new plates, without treatment labels.
        bases: the output of finetune, or of pretrain for each backbone, in any order; none for a published model.
        fold: the fold that the networks were trained for.
        cell_type: the wells' cell type.
        logits: folder to write: logits.npz and meta.json.
        embeddings: folder to write: Parquet files, see core.storage.arrays.
        checkpoints: saves predictions from time to time; None saves none.
        team: the processes that share the work.
        published: the published model that predicts new plates: its store and manifest.

    Raises:
        InputError: weights of another fold or cell type, or not one of each backbone; files of a published model that are
            missing, damaged or of another architecture.
    """
    device = pick_device()
    if published is None:
        networks = _trained(settings, bases, fold, cell_type, screen, device)
    else:
        networks = _published(settings, *published, fold, cell_type, device)
    for network in networks.by_backbone.values():
        prepare(network, settings.compute, device)
    checkpoints = checkpoints or Checkpoints()
    saved = checkpoints.resume()
    pieces = Pieces(checkpoints, found=saved["pieces"] if saved else None)
    validated = False
    if published is None:
        images = open_images(settings, screen, store, device, team)
        wells = fold_wells(images.table, fold, settings.screen.controls, cell_type)
        validated = bool(len(wells.validation))
        held_out = held_out_images(holdout, screen, cell_type, store, settings, device, team)
        predicted = predict_fold(networks.by_backbone, screen, images, wells, held_out, cell_type, settings, pieces)
    else:
        held_out = held_out_images(holdout, screen, cell_type, store, settings, device, team)
        if held_out is None:
            raise InputError(f"the new plates have no wells of cell type {cell_type}; run normalize again")
        predicted = predict_held_out(networks.by_backbone, screen, held_out, cell_type, settings, pieces)
    meta = fold_meta(cell_type, fold, validated, networks.history)
    predicted.write(logits, embeddings, meta, settings, networks.weights)


def _trained(
    settings: InferSettings, bases: Sequence[Path], fold: int, cell_type: str, screen: Manifest, device: torch.device
) -> FoldNetworks:
    classes = len(screen.vocabulary.classes)
    if "backbone" in read_meta(bases[0]):
        networks, history = load_pretrained(
            bases, fold, settings, classes, network_input(settings.screen, screen), device
        )
        return FoldNetworks(networks, "pretrained", history)
    if len(bases) != 1:
        raise InputError(f"{bases[1]}: finetune's output holds all backbones; give it alone")
    check_finetuned(bases[0], fold, cell_type)
    pairs, history = load_pairs(bases[0], settings, classes, network_input(settings.screen, screen), device)
    return FoldNetworks(predicting_networks(pairs, settings), settings.predict.weights, history)


def _published(
    settings: InferSettings,
    registry: ObjectStore,
    model: ModelManifest,
    fold: int,
    cell_type: str,
    device: torch.device,
) -> FoldNetworks:
    _check_settings(settings, model)
    networks, classes = {}, len(model.vocabulary.classes)
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        paths = download_networks(registry, model, fold, cell_type, Path(folder))
        for backbone in settings.backbones:
            if backbone.name not in paths:
                raise InputError(
                    f"model {model.short}: has no {backbone.name} network of fold {fold} for cell type {cell_type}"
                )
            try:
                networks[backbone.name] = load_network(
                    paths[backbone.name], backbone, settings, classes, network_input(settings.screen, model), device
                )
            except InputError as error:
                reason = str(error).replace(f"{folder}/", "")
                raise InputError(
                    f"model {model.short}: {reason}; `cellsignal models publish {model.run} --repair`"
                ) from None
    return FoldNetworks(networks, model.predicted_by, [])


def _check_settings(settings: InferSettings, model: ModelManifest) -> None:
    """Rejects a configuration other than the model's, with which predictions would be silently wrong."""
    own = model.run_config().section(InferSettings)
    for part in ("standardise", "batch_norm", "head", "backbones"):
        if _without_weights(settings, part) != _without_weights(own, part):
            raise InputError(
                f"config: {part} is not as model {model.short} was trained; give the config.yaml of its run"
            )
    if (settings.screen.bin, settings.screen.crop) != (own.screen.bin, own.screen.crop):
        raise InputError(
            f"config: screen.bin and screen.crop are not as model {model.short} was trained; give the config.yaml of its run"
        )


def _without_weights(settings: InferSettings, part: str) -> object:
    """A part of the settings without the initial weights, which matter only to training."""
    found = settings.model_dump(include={part})[part]
    return [{**each, "weights": None} for each in found] if part == "backbones" else found


def main(
    screen: str,
    holdout: str,
    bases: Sequence[str],
    fold: int,
    cell_type: str,
    logits: str,
    embeddings: str,
    config: str = "",
) -> None:
    """Runs the step on paths; `config` is RunConfig as JSON, instead of the manifest's. A finished output is copied from the store.

    A screen manifest that names a model predicts the new plates in `holdout` with it, without `bases`.

    Raises:
        InputError: both weights and a model, or neither; or as `run`.
    """
    with training_step("infer", InferSettings, locals()) as step:
        if step is None:
            return
        settings, manifest, held_out = step.settings, step.screen, Manifest.read(Path(holdout))
        folders = base_folders(bases)
        published = None
        if manifest.model is None:
            if not folders:
                raise InputError(
                    f"no networks: give trained weights, or as screen a manifest that names a model, not {screen}"
                )
            bases_digest = " ".join(sorted(weights_digest(base) for base in folders))
            networks = {"screen": manifest.digest(), "bases": bases_digest}
        else:
            if folders:
                raise InputError(f"{screen} names a model, whose networks predict; leave the weights {folders[0]} out")
            published = find_model(step.store, manifest.model.address)
            files = [each for each in published[1].networks if each.fold == fold]
            digests = sorted(f"{f.backbone}={f.sha256}" for f in files if f.cell_type in (None, cell_type))
            networks = {"model": manifest.model.fingerprint, "networks": " ".join(digests)}
        work = partial(run, settings, step.store, manifest, held_out, folders, fold, cell_type)
        step.run_once(
            {
                "settings": settings.unsphered().fingerprint(),
                "holdout": held_out.digest(),
                **networks,
                "code": code_digest(*TRAINING_CODE, *PREDICTING_CODE, "components.infer"),
            },
            {"logits": logits, "embeddings": embeddings},
            lambda out, checkpoints: work(out["logits"], out["embeddings"], checkpoints, step.team, published),
            holdout=held_out,
            sphering=sphering(settings),
        )
