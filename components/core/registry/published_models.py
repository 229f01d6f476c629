"""The models of a registry: a list, the model that a name means, and its files with their digests checked. Reads only."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from components.core.errors import InputError, MissingObjectError
from components.core.registry.champion import CHAMPION, read_champion
from components.core.registry.model_manifest import (
    FINGERPRINT,
    MANIFEST,
    MODELS,
    PLATES,
    SHORT,
    ModelManifest,
    TrainedPlate,
)
from components.core.storage.finished import DamagedError, StoredFile, download_checked
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_store

THE_CHAMPION = "champion"
_FEWEST = 4
"""Digits of an abbreviated fingerprint."""
_PLATES = TypeAdapter(tuple[TrainedPlate, ...])


@dataclass(frozen=True)
class ListedModel:
    """A model of a listing.

    Attributes:
        fingerprint: the model's.
        manifest: None if it cannot be read.
        problem: why it cannot; empty if it can.
    """

    fingerprint: str
    manifest: ModelManifest | None
    problem: str = ""


@dataclass(frozen=True)
class OpenedModel:
    """A model's files in a local folder.

    Attributes:
        manifest: the model's.
        folder: with metrics.json, config.yaml, card.md, plates.json, weights/.
        weights: safetensors files by fold, cell type and backbone, of the cell types that were requested.
    """

    manifest: ModelManifest
    folder: Path
    weights: Mapping[tuple[int, str, str], Path]

    def networks(self, cell_type: str) -> dict[int, dict[str, Path]]:
        """The networks that classify wells of a cell type, by fold and backbone."""
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


def fingerprints(store: ObjectStore) -> list[str]:
    """The complete models of a registry, sorted."""
    found = (re.fullmatch(rf"{MODELS}/({FINGERPRINT})/{MANIFEST}", key) for key in store.list(f"{MODELS}/"))
    return [match[1] for match in found if match]


def list_models(store: ObjectStore) -> list[ListedModel]:
    """All models: those whose manifest cannot be read first, then by age, the newest last."""
    models = []
    for fingerprint in fingerprints(store):
        try:
            models.append(ListedModel(fingerprint, read_model(store, fingerprint)))
        except InputError as error:
            models.append(ListedModel(fingerprint, None, str(error)))
    return sorted(
        models, key=lambda each: (each.manifest.created.timestamp() if each.manifest else 0, each.fingerprint)
    )


def read_model(store: ObjectStore, fingerprint: str) -> ModelManifest:
    """One model's manifest.

    Raises:
        InputError: no such model, or its manifest is damaged or of a newer version.
    """
    path = f"{MODELS}/{fingerprint}/{MANIFEST}"
    try:
        model = ModelManifest.load(store, path)
    except MissingObjectError:
        raise InputError(
            f"{store.uri(path)}: there is no such model; `cellsignal models list` shows those there"
        ) from None
    if model.fingerprint != fingerprint:
        raise InputError(f"{store.uri(path)}: damaged, it is the manifest of model {model.short}")
    return model


def resolve_fingerprint(store: ObjectStore, name: str) -> str:
    """The whole fingerprint of a model.

    Args:
        store: the registry's store.
        name: `champion`, or the first digits of a fingerprint.

    Raises:
        InputError: no champion, no such model, or several.
    """
    if name == THE_CHAMPION:
        champion = read_champion(store)
        if champion is None:
            raise InputError(
                f"{store.uri(CHAMPION)}: no model has been promoted yet; promote one with `cellsignal models promote`"
            )
        return champion.now.fingerprint
    if not is_fingerprint(name):
        raise InputError(
            f"{name}: neither `{THE_CHAMPION}` nor the first digits of a model's fingerprint (at least {_FEWEST})"
        )
    there = fingerprints(store)
    found = [each for each in there if each.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{name}: {_shortened(found)} begin with it; give more digits")
    raise InputError(
        f"{name}: no such model below {store.uri(MODELS)} "
        f"({f'there are {_shortened(there)}' if there else 'there are none'})"
    )


def is_fingerprint(name: str) -> bool:
    """Whether this may be a fingerprint, or the first digits of one."""
    return re.fullmatch(rf"[0-9a-f]{{{_FEWEST},64}}", name) is not None


def model_address(address: str) -> tuple[str, str]:
    """Store and name of a model's address, ADDRESS_OF_STORE/models/NAME; the store is empty for a name alone.

    Raises:
        InputError: not such an address.
    """
    if "://" not in address:
        return "", address
    store, _, name = address.rstrip("/").rpartition("/")
    store, _, folder = store.rpartition("/")
    name = name.removesuffix(".json")  # models/champion.json is what a bucket shows
    if folder != MODELS or store.endswith(("/", ":")) or not (name == THE_CHAMPION or is_fingerprint(name)):
        raise InputError(
            f"{address}: not a model's address, which looks like s3://BUCKET[/PREFIX]/{MODELS}/FINGERPRINT, "
            f"file:///FOLDER/{MODELS}/FINGERPRINT, or ends in {MODELS}/{THE_CHAMPION}"
        )
    return store, name


def find_model(own: ObjectStore, name: str) -> tuple[ObjectStore, ModelManifest]:
    """A model, and the store that it is in.

    Args:
        own: store to search if the name is no address.
        name: `champion`, the first digits of a fingerprint, or the address of either; see model_address.

    Raises:
        InputError: as `resolve_fingerprint` and `read_model`, or no credentials in the environment for a bucket.
    """
    address, name = model_address(name)
    store = open_store(address) if address else own
    return store, read_model(store, resolve_fingerprint(store, name))


def open_model(
    store: ObjectStore,
    name: str,
    folder: Path,
    cell_types: Collection[str] | None = None,
    folds: Collection[int] | None = None,
) -> OpenedModel:
    """Finds a model as find_model does, and downloads it as download_model does."""
    return download_model(*find_model(store, name), folder, cell_types, folds)


def download_model(
    registry: ObjectStore,
    model: ModelManifest,
    folder: Path,
    cell_types: Collection[str] | None = None,
    folds: Collection[int] | None = None,
) -> OpenedModel:
    """Downloads a model's files and compares them with their digests.

    Args:
        registry: the store that it is in.
        model: its manifest.
        folder: receives its files; created if missing.
        cell_types: whose networks to download; None for all.
        folds: whose networks to download; None for all.

    Raises:
        InputError: files are missing or damaged, or the folder cannot be written.
        StepError: the store failed.
    """
    wanted = model.cell_types if cell_types is None else tuple(cell_types)
    weights: dict[tuple[int, str, str], Path] = {}
    try:
        for file in model.files:
            _download(registry, model, file, folder)
        for network in model.networks:
            if folds is not None and network.fold not in folds:
                continue
            of = [each for each in wanted if network.cell_type in (None, each) and network.fold in model.folds_of(each)]
            if of:
                path = _download(registry, model, network, folder)
                weights |= {(network.fold, each, network.backbone): path for each in of}
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None
    return OpenedModel(model, folder, weights)


def read_file(store: ObjectStore, model: ModelManifest, name: str) -> bytes:
    """One of a model's small files, checked.

    Args:
        store: the registry's store.
        model: the model.
        name: metrics.json, config.yaml, card.md or plates.json.

    Raises:
        InputError: it is missing or damaged.
    """
    for file in model.files:
        if file.path == name:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                return _download(store, model, file, Path(folder)).read_bytes()
    raise InputError(f"model {model.short}: has no {name}; its manifest is damaged")


def trained_plates(store: ObjectStore, model: ModelManifest) -> tuple[TrainedPlate, ...]:
    """The plates that a model's networks saw.

    Raises:
        InputError: their file is missing, damaged or of another version.
    """
    return _parse_plates(read_file(store, model, PLATES), f"model {model.short}, {PLATES}")


def _parse_plates(content: bytes, label: str) -> tuple[TrainedPlate, ...]:
    try:
        return _PLATES.validate_json(content)
    except ValidationError as error:
        raise InputError(f"{label}: cannot be read ({error.errors()[0]['msg']}); publish the run again") from None


def _download(store: ObjectStore, model: ModelManifest, file: StoredFile, folder: Path) -> Path:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_checked(store, model.key(file.path), file, target)
    except DamagedError as damage:
        raise InputError(f"model {model.short}: {damage}; `cellsignal models publish {model.run} --anew`") from None
    return target


def _shortened(found: Sequence[str]) -> str:
    return ", ".join(each[:SHORT] for each in found)
