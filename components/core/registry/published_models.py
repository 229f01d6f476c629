"""The models of a registry: which there are, and which one is meant by a name. Reads manifests; the store is passed in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from components.core.errors import InputError
from components.core.registry.champion import CHAMPION, read_champion
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS, SHORT, ModelManifest, parse_model
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.opening import open_beside

THE_CHAMPION = "champion"
_FEWEST = 4
"""Digits of an abbreviated fingerprint."""


@dataclass(frozen=True)
class ModelLine:
    """A model of a listing.

    Attributes:
        fingerprint: of the model.
        manifest: None where it cannot be read.
        problem: why it cannot; empty where it can.
    """

    fingerprint: str
    manifest: ModelManifest | None
    problem: str = ""


def fingerprints(store: ObjectStorage) -> list[str]:
    """The whole models of a registry, sorted."""
    found = (re.fullmatch(rf"{MODELS}/({FINGERPRINT})/{MANIFEST}", key) for key in store.list(f"{MODELS}/"))
    return [match[1] for match in found if match]


def list_models(store: ObjectStorage) -> list[ModelLine]:
    """All models, the newest at the end; one whose manifest cannot be read is named first."""
    lines = []
    for fingerprint in fingerprints(store):
        try:
            lines.append(ModelLine(fingerprint, read_model(store, fingerprint)))
        except InputError as error:
            lines.append(ModelLine(fingerprint, None, str(error)))
    return sorted(lines, key=lambda line: (line.manifest.created.timestamp() if line.manifest else 0, line.fingerprint))


def read_model(store: ObjectStorage, fingerprint: str) -> ModelManifest:
    """One model's manifest.

    Raises:
        InputError: no such model, or its manifest is damaged or of a newer schema.
    """
    path = f"{MODELS}/{fingerprint}/{MANIFEST}"
    try:
        model = parse_model(store.get(path), store.uri(path))
    except MissingObjectError:
        raise InputError(
            f"{store.uri(path)}: there is no such model; `cellsignal models list` shows those there"
        ) from None
    if model.fingerprint != fingerprint:
        raise InputError(f"{store.uri(path)}: damaged, it says that it is model {model.short}")
    return model


def meant(store: ObjectStorage, given: str) -> str:
    """The whole fingerprint that is meant.

    Args:
        store: of the registry.
        given: `champion`, or the first digits of a fingerprint.

    Raises:
        InputError: no champion, no such model, or several.
    """
    if given == THE_CHAMPION:
        champion = read_champion(store)
        if champion is None:
            raise InputError(
                f"{store.uri(CHAMPION)}: no model has been promoted yet; promote one with `cellsignal models promote`"
            )
        return champion.now.fingerprint
    if not is_fingerprint(given):
        raise InputError(
            f"{given}: neither `{THE_CHAMPION}` nor the first digits of a model's fingerprint (at least {_FEWEST})"
        )
    found = [each for each in fingerprints(store) if each.startswith(given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{given}: {_shown(found)} begin so; give more digits")
    there = fingerprints(store)
    raise InputError(
        f"{given}: no such model below {store.uri(MODELS)} ({f'there are {_shown(there)}' if there else 'there are none'})"
    )


def is_fingerprint(given: str) -> bool:
    """Whether this may be a fingerprint, or the first digits of one."""
    return re.fullmatch(rf"[0-9a-f]{{{_FEWEST},64}}", given) is not None


def model_address(given: str) -> tuple[str, str]:
    """Store and name of a model's address, ADDRESS_OF_STORE/models/NAME; the store is empty for a name alone.

    Raises:
        InputError: not such an address.
    """
    if "://" not in given:
        return "", given
    store, _, name = given.rstrip("/").rpartition("/")
    store, _, folder = store.rpartition("/")
    name = name.removesuffix(".json")  # models/champion.json is what a bucket shows
    if folder != MODELS or store.endswith(("/", ":")) or not (name == THE_CHAMPION or is_fingerprint(name)):
        raise InputError(
            f"{given}: not a model's address, which looks like s3://BUCKET[/PREFIX]/{MODELS}/FINGERPRINT, "
            f"file:///FOLDER/{MODELS}/FINGERPRINT, or ends in {MODELS}/{THE_CHAMPION}"
        )
    return store, name


def find_model(own: ObjectStorage, given: str) -> tuple[ObjectStorage, ModelManifest]:
    """The model that is meant, and the store that it is in.

    Args:
        own: where a model is looked for that is given without an address.
        given: `champion`, the first digits of a fingerprint, or the address of either; see model_address.

    Raises:
        InputError: as `meant` and `read_model`, or no credentials in the environment for a bucket.
    """
    address, name = model_address(given)
    store = open_beside(own, address) if address else own
    return store, read_model(store, meant(store, name))


def _shown(found: Sequence[str]) -> str:
    return ", ".join(each[:SHORT] for each in found)
