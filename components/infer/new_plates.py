"""infer on new plates: a published model's networks of one fold and cell type in, logits out. Reads and writes.

The method is core.learning.prediction, as for held-out experiments; the networks come from the registry.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from components.core.config import parse
from components.core.errors import InputError
from components.core.learning.checkpoints import Checkpoints
from components.core.learning.network import Classifier, pick_device, prepare
from components.core.learning.prediction import Pieces, fold_meta, held_out_images, predict_held_out
from components.core.learning.step_settings import PREDICTING_CODE, TRAINING_CODE, InferSettings
from components.core.learning.team import Team
from components.core.learning.weight_files import load_weights
from components.core.registry.model_manifest import ModelManifest
from components.core.registry.published_models import OpenedModel, download_model, find_model
from components.core.storage.finished import code_digest
from components.core.storage.interface import ObjectReader, ObjectStorage
from components.core.storage.manifest import Manifest, ReferenceModel
from components.core.storage.run_record import record_fold
from components.core.training_step import start_processes, training_step


def run(
    settings: InferSettings,
    registry: ObjectStorage,
    model: ModelManifest,
    store: ObjectReader,
    reference: Manifest,
    plates: Manifest,
    fold: int,
    cell_type: str,
    logits: Path,
    embeddings: Path,
    checkpoints: Checkpoints | None = None,
    team: Team | None = None,
) -> None:
    """Predicts the new plates of a cell type, and embeds all their wells, controls included.

    Args:
        settings: the model's, with what a prediction may change.
        registry: the store that the model is in.
        model: the model that predicts.
        store: where the packed plates are.
        reference: what stands for the training screen, see core.registry.reference.
        plates: the new plates.
        fold: whose networks.
        cell_type: whose wells.
        logits: folder to write: logits.npz and meta.json; all wells have the role holdout.
        embeddings: folder to write: Parquet files, see core.storage.embeddings.
        checkpoints: where prediction is saved by time; None saves none.
        team: the processes that share the work; None for this one alone.

    Raises:
        InputError: the model's files are not there any more, damaged, or of another architecture; or it has no networks of
            this fold and cell type.
    """
    device = pick_device()
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        opened = download_model(registry, model, Path(folder), [cell_type], [fold])
        networks = _load(settings, opened, fold, cell_type, device)
    checkpoints = checkpoints or Checkpoints()
    saved = checkpoints.resume()
    pieces = Pieces(checkpoints, found=saved["pieces"] if saved else None)
    images = held_out_images(plates, reference, cell_type, store, settings, device, team)
    if images is None:
        raise InputError(f"the new plates have no wells of cell type {cell_type}; run normalize again")
    predicted = predict_held_out(networks, reference, images, cell_type, settings, pieces)
    meta = fold_meta(cell_type, fold, validated=False, history=[])
    predicted.write(logits, embeddings, meta, settings, model.predicted_by)


def model_of(reference: Manifest) -> ReferenceModel:
    """The model that a reference was made from.

    Raises:
        InputError: it is a screen's manifest.
    """
    if reference.model is None:
        raise InputError("the manifest names no model; give the reference that normalize wrote for new plates")
    return reference.model


def _load(
    settings: InferSettings, opened: OpenedModel, fold: int, cell_type: str, device: torch.device
) -> dict[str, Classifier]:
    """The networks of a fold and cell type by backbone, in the configured order, by which logits are summed."""
    model, paths = opened.manifest, opened.networks(cell_type).get(fold, {})
    networks = {}
    for backbone in settings.backbones:
        if backbone.name not in paths:
            raise InputError(
                f"model {model.short}: has no {backbone.name} network of fold {fold} for cell type {cell_type}"
            )
        classes = len(model.vocabulary.classes)
        network = Classifier(backbone, settings.head, classes, model.channels, model.image_size)
        try:
            load_weights(network, paths[backbone.name])
        except InputError as error:
            said = str(error).replace(f"{opened.folder}/", "")
            raise InputError(f"model {model.short}: {said}; `cellsignal models publish {model.run} --anew`") from None
        networks[backbone.name] = network.to(device).to(memory_format=torch.channels_last)
        prepare(networks[backbone.name], settings.compute, device)
    return networks


def _digests(model: ModelManifest, fold: int, cell_type: str) -> str:
    """What the networks that predict are, for the key of finished work."""
    files = [each for each in model.networks if each.fold == fold and each.cell_type in (None, cell_type)]
    return " ".join(sorted(f"{file.backbone}={file.sha256}" for file in files))


def main(config: str, reference: str, plates: str, fold: int, cell_type: str, logits: str, embeddings: str) -> None:
    """The step with paths and JSON, as the pipeline calls it; finished work is fetched instead of done again.

    Args:
        config: InferSettings as JSON.
        reference: path of what stands for the training screen.
        plates: path of the new plates' manifest.
        fold: whose networks.
        cell_type: whose wells.
        logits: folder to write.
        embeddings: folder to write.
    """
    if start_processes("infer", config, locals(), "new_plates"):
        return
    settings = parse(InferSettings, json.loads(config), "config")
    with training_step("infer", settings.compute, plates, fold=fold, cell_type=cell_type) as step:
        known = Manifest.read(Path(reference))
        named = model_of(known)
        registry, model = find_model(step.store, named.address)
        step.run_once(
            {
                "settings": settings.fingerprint(),
                "model": named.fingerprint,
                "networks": _digests(model, fold, cell_type),
                "plates": step.screen.digest(),
                "code": code_digest(*TRAINING_CODE, *PREDICTING_CODE, "components.infer"),
            },
            {"logits": logits, "embeddings": embeddings},
            lambda out, checkpoints: run(
                settings,
                registry,
                model,
                step.store,
                known,
                step.screen,
                fold,
                cell_type,
                out["logits"],
                out["embeddings"],
                checkpoints,
                step.team,
            ),
            lambda key: record_fold(step.store, known, step.screen, cell_type, fold, key),
        )
