"""A published model on this machine, ready to predict: manifest, weights, and what its plates looked like; digests checked."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from components.core.errors import InputError
from components.core.registry.model_manifest import PLATES, ModelManifest, TrainedPlate
from components.core.registry.model_weights import check_architecture, tensor_shapes
from components.core.registry.published_models import find_model
from components.core.storage.interface import ObjectStorage
from components.core.storage.manifest import Manifest, PlateRecord
from components.core.storage.stored_file import DamagedError, StoredFile, download_checked

_PLATES = TypeAdapter(tuple[TrainedPlate, ...])


@dataclass(frozen=True)
class OpenedModel:
    """A model's files in a folder.

    Attributes:
        manifest: what is known of it.
        folder: where its files are: metrics.json, config.yaml, card.md, plates.json, weights/.
        weights: safetensors files by fold, cell type and backbone, of the cell types that were asked for.
    """

    manifest: ModelManifest
    folder: Path
    weights: Mapping[tuple[int, str, str], Path]

    def networks(self, cell_type: str) -> dict[int, dict[str, Path]]:
        """The networks that name wells of a cell type, by fold and backbone."""
        found: dict[int, dict[str, Path]] = {}
        for (fold, of, backbone), path in self.weights.items():
            if of == cell_type:
                found.setdefault(fold, {})[backbone] = path
        return found

    def plates(self) -> tuple[TrainedPlate, ...]:
        """The plates that the networks saw, for statistics and drift.

        Raises:
            InputError: the file is of another version.
        """
        path = self.folder / PLATES
        return _parse_plates(path.read_bytes(), str(path))

    def reference(self) -> Manifest:
        """The training screen without its wells, for the statistics of domains wider than an experiment.

        Raises:
            InputError: the plates' file is of another version.
        """
        model = self.manifest
        return Manifest(
            store=model.store,
            channels=model.channels,
            image_size=model.image_size,
            codec=model.run_config().pack,
            vocabulary=model.vocabulary,
            folds=model.experiment_folds,
            plates=tuple(PlateRecord(**plate.model_dump(), prefix="", wells=()) for plate in self.plates()),
        )


def open_model(
    store: ObjectStorage,
    which: str,
    folder: Path,
    cell_types: Collection[str] | None = None,
    folds: Collection[int] | None = None,
) -> OpenedModel:
    """Brings a model here.

    Args:
        store: where a model is looked for that is given without an address.
        which: `champion`, the first digits of a fingerprint, or s3://BUCKET[/PREFIX]/models/NAME, file:///FOLDER/models/NAME.
        folder: receives its files; made when missing.
        cell_types: whose networks are wanted; None for all.
        folds: likewise of which folds.

    Raises:
        InputError: no such model or champion, a manifest of a newer schema, files that are missing, damaged or of another
            architecture, or a folder that cannot be written.
        StepError: the store failed.
    """
    return bring_model(*find_model(store, which), folder, cell_types, folds)


def bring_model(
    registry: ObjectStorage,
    model: ModelManifest,
    folder: Path,
    cell_types: Collection[str] | None = None,
    folds: Collection[int] | None = None,
) -> OpenedModel:
    """Brings a model here that has been found, see published_models.find_model.

    Args:
        registry: the store that it is in.
        model: its manifest.
        folder: receives its files; made when missing.
        cell_types: whose networks are wanted; None for all.
        folds: likewise of which folds.

    Raises:
        InputError: files that are missing, damaged or of another architecture, or a folder that cannot be written.
        StepError: the store failed.
    """
    wanted = model.cell_types if cell_types is None else tuple(cell_types)
    weights: dict[tuple[int, str, str], Path] = {}
    try:
        for file in model.files:
            _bring(registry, model, file, folder)
        config = {backbone.name: backbone for backbone in model.run_config().backbones}
        for network in model.networks:
            of = [each for each in wanted if network.cell_type in (None, each) and network.fold in model.folds_of(each)]
            if not of or (folds is not None and network.fold not in folds):
                continue
            path = _bring(registry, model, network, folder)
            said = registry.uri(model.key(network.path))
            if network.backbone not in config:
                raise InputError(
                    f"{said}: backbone {network.backbone} is not in the model's configuration; its manifest is damaged"
                )
            backbone = config[network.backbone]
            shapes = tensor_shapes(path, said)
            check_architecture(shapes, backbone, len(model.vocabulary.classes), model.channels, said)
            weights |= {(network.fold, each, network.backbone): path for each in of}
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None
    return OpenedModel(model, folder, weights)


def read_file(store: ObjectStorage, model: ModelManifest, name: str) -> bytes:
    """One of a model's small files, checked.

    Args:
        store: of the registry.
        model: whose.
        name: metrics.json, config.yaml, card.md or plates.json.

    Raises:
        InputError: it is missing or damaged.
    """
    for file in model.files:
        if file.path == name:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                return _bring(store, model, file, Path(folder)).read_bytes()
    raise InputError(f"model {model.short}: has no {name}; its manifest is damaged")


def trained_plates(store: ObjectStorage, model: ModelManifest) -> tuple[TrainedPlate, ...]:
    """The plates that a model's networks saw.

    Raises:
        InputError: their file is missing, damaged or of another version.
    """
    return _parse_plates(read_file(store, model, PLATES), f"model {model.short}, {PLATES}")


def _parse_plates(content: bytes, said: str) -> tuple[TrainedPlate, ...]:
    try:
        return _PLATES.validate_json(content)
    except ValidationError as error:
        raise InputError(f"{said}: cannot be read ({error.errors()[0]['msg']}); publish the run again") from None


def _bring(store: ObjectStorage, model: ModelManifest, file: StoredFile, folder: Path) -> Path:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_checked(store, model.key(file.path), file, target)
    except DamagedError as damage:
        raise InputError(f"model {model.short}: {damage}; `cellsignal models publish {model.run} --anew`") from None
    return target
