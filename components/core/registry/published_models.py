"""The published models of a registry: a list, one model by any of its names, and its files."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from components.core.errors import InputError, MissingObjectError
from components.core.registry.champion import CHAMPION, read_champion
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS, PLATES, SHORT, ModelManifest
from components.core.storage.finished import DamagedError, StoredFile, download_checked
from components.core.storage.manifest import PlateRecord
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import split_address

THE_CHAMPION = "champion"
DIGITS = r"[0-9a-f]{4,64}"
"""The pattern of a fingerprint, or of its first digits."""
_PLATES = TypeAdapter(tuple[PlateRecord, ...])


def fingerprints(store: ObjectStore) -> list[str]:
    """The complete models of a registry, sorted."""
    found = (re.fullmatch(rf"{MODELS}/({FINGERPRINT})/{MANIFEST}", key) for key in store.list(f"{MODELS}/"))
    return [match[1] for match in found if match]


def list_models(store: ObjectStore) -> tuple[list[ModelManifest], dict[str, str]]:
    """All models, the newest last, and by fingerprint why the manifests of others cannot be read."""
    models, problems = [], {}
    for fingerprint in fingerprints(store):
        try:
            models.append(read_model(store, fingerprint))
        except InputError as error:
            problems[fingerprint] = str(error)
    return sorted(models, key=lambda model: (model.created.timestamp(), model.fingerprint)), problems


def read_model(store: ObjectStore, fingerprint: str) -> ModelManifest:
    """One model's manifest; InputError if there is no such model, or its manifest is damaged or of a newer version."""
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
    """The whole fingerprint of a model, by `champion` or its first digits; InputError if there is none, or several."""
    if name == THE_CHAMPION:
        champion = read_champion(store)
        if champion is None:
            raise InputError(
                f"{store.uri(CHAMPION)}: no model has been promoted yet; promote one with `cellsignal models promote`"
            )
        return champion.now.fingerprint
    known = fingerprints(store)
    found = [each for each in known if each.startswith(name)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(each[:SHORT] for each in found or known)
    if found:
        raise InputError(f"{name}: {shown} begin with it; give more digits")
    raise InputError(
        f"{name}: no such model below {store.uri(MODELS)} ({f'there are {shown}' if known else 'there are none'})"
    )


def model_address(address: str) -> tuple[str, str]:
    """Store and name of a model's address, STORE/models/FINGERPRINT or STORE/models/champion, or of a name alone."""
    names = rf"{THE_CHAMPION}(\.json)?|{DIGITS}"  # champion.json is what a bucket shows
    expected = f"`{THE_CHAMPION}` nor the first digits of a model's fingerprint (at least 4)"
    store, name = split_address(address, MODELS, names, expected, "FINGERPRINT")
    return store, name.removesuffix(".json")


def find_model(own: ObjectStore, name: str) -> tuple[ObjectStore, ModelManifest]:
    """A model, by `champion`, its first digits or its address, and the store that it is in: `own` unless it has an address.

    InputError if there is no such model, it cannot be read, or the environment has no credentials for its bucket.
    """
    address, name = model_address(name)
    store = ObjectStore(address) if address else own
    return store, read_model(store, resolve_fingerprint(store, name))


def download_networks(
    store: ObjectStore, model: ModelManifest, fold: int, cell_type: str, folder: Path
) -> dict[str, Path]:
    """Downloads the networks of one fold that classify wells of one cell type, and compares them with their digests.

    Returns safetensors files in `folder`, by backbone; InputError if one is missing or damaged.
    """
    if fold not in model.folds_of(cell_type):
        return {}
    return {
        network.backbone: _download(store, model, network, folder)
        for network in model.networks
        if network.fold == fold and network.cell_type in (None, cell_type)
    }


def read_file(store: ObjectStore, model: ModelManifest, name: str) -> bytes:
    """A model's metrics.json, config.yaml, card.md or plates.json; InputError if it is missing or damaged."""
    for file in model.files:
        if file.path == name:
            with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
                return _download(store, model, file, Path(folder)).read_bytes()
    raise InputError(f"model {model.short}: has no {name}; its manifest is damaged")


def trained_plates(store: ObjectStore, model: ModelManifest) -> tuple[PlateRecord, ...]:
    """The plates that a model's networks saw, without wells; InputError if their file is missing, damaged or of another version."""
    try:
        return _PLATES.validate_json(read_file(store, model, PLATES))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(
            f"model {model.short}, {PLATES}: cannot be read ({reason}); `cellsignal models publish {model.run} --repair`"
        ) from None


def _download(store: ObjectStore, model: ModelManifest, file: StoredFile, folder: Path) -> Path:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_checked(store, model.key(file.path), file, target)
    except DamagedError as damage:
        raise InputError(f"model {model.short}: {damage}; `cellsignal models publish {model.run} --repair`") from None
    return target
