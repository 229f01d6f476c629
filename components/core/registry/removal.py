"""Removes models of a registry: neither the champion, nor one of the last before it, nor recently published or used.

    models/FINGERPRINT/manifest.json, ATTEMPT/...   a model; attempts that its manifest does not name are unused
    models/FINGERPRINT/ATTEMPT/...                  without a manifest: of an interrupted publication, or one in progress

Objects younger than an age are never removed. A model's manifest goes first, so an interrupted removal leaves no damaged model,
and the next one removes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from components.core.errors import InputError
from components.core.registry.champion import Champion, read_champion
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS, ModelManifest
from components.core.registry.published_models import read_model
from components.core.storage.garbage import cutoff_of
from components.core.storage.interface import ObjectStorage
from components.core.storage.inventory import ObjectInventory
from components.core.storage.recorded_runs import read_runs

_KEY = re.compile(rf"{MODELS}/({FINGERPRINT})/(?:{MANIFEST}|([0-9a-f]{{32}})/.+)")

Kind = Literal["model", "unfinished model", "unused copy"]


class ModelStore(ObjectStorage, ObjectInventory, Protocol):
    """A store that can be written conditionally and listed with sizes and times."""


@dataclass
class StoredModel:
    """A model, or a part of one.

    Attributes:
        kind: what it is.
        fingerprint: the model's.
        prefix: of its keys.
        objects: how many.
        size: bytes.
        newest: time of the youngest.
        run: the run that trained a complete model; empty if its manifest cannot be read.
    """

    kind: Kind
    fingerprint: str
    prefix: str
    objects: int
    size: int
    newest: datetime
    run: str = ""


def kept_models(champion: Champion | None, keep: int) -> list[str]:
    """The champion and the last different models before it.

    Args:
        champion: None if none was promoted.
        keep: how many before the champion.
    """
    if champion is None:
        return []
    return list(dict.fromkeys(promotion.fingerprint for promotion in champion.promotions))[: keep + 1]


def removable(store: ModelStore, keep: int, older_than: timedelta) -> list[StoredModel]:
    """What may be removed. Without a champion it is not known which models are needed, and complete ones stay.

    Args:
        store: the registry's.
        keep: how many champions before the present one stay.
        older_than: younger objects stay, as do models that a prediction has used since.

    Raises:
        InputError: champion.json is damaged.
        StepError: the store failed.
    """
    cutoff, champion = cutoff_of(older_than), read_champion(store)
    kept = {*kept_models(champion, keep)}
    kept |= {
        run.record.prediction.model
        for run in read_runs(store)
        if run.active > cutoff and run.record and run.record.prediction
    }
    whole, parts = _list_models(store)
    manifests: dict[str, ModelManifest | None] = {}
    for fingerprint, model in whole.items():
        if model.kind == "model":
            try:
                manifests[fingerprint] = manifest = read_model(store, fingerprint)
                model.run = manifest.run
            except InputError:
                manifests[fingerprint] = None
    found = [
        model
        for model in whole.values()
        if model.kind == "unfinished model" or (champion and model.fingerprint not in kept)
    ]
    removed = {model.fingerprint for model in found if model.newest <= cutoff}
    for part in parts:
        used = manifests.get(part.fingerprint)
        if part.fingerprint not in removed and used and part.prefix != used.key("").rstrip("/"):
            found.append(part)
    return [model for model in found if model.newest <= cutoff]


def remove(store: ModelStore, models: Iterable[StoredModel], keep: int, older_than: timedelta) -> list[StoredModel]:
    """Removes models, except for those that have come into use since they were listed; returns those removed.

    Args:
        store: the registry's.
        models: from removable.
        keep: as for removable.
        older_than: as for removable.

    Raises:
        InputError: champion.json is damaged, or the store refuses to delete.
        StepError: the store failed.
    """
    requested = {(model.kind, model.prefix) for model in models}
    still = [model for model in removable(store, keep, older_than) if (model.kind, model.prefix) in requested]
    for model in still:
        if model.kind == "model":
            store.delete(f"{model.prefix}/{MANIFEST}")
        store.delete_many([found.key for found in store.scan(f"{model.prefix}/") if _KEY.fullmatch(found.key)])
    return still


def _list_models(store: ModelStore) -> tuple[dict[str, StoredModel], list[StoredModel]]:
    """Models by fingerprint, and the attempts in them."""
    whole: dict[str, StoredModel] = {}
    parts: dict[str, StoredModel] = {}
    for found in store.scan(f"{MODELS}/"):
        if not (match := _KEY.fullmatch(found.key)):
            continue
        fingerprint, attempt = match.groups()
        prefix = f"{MODELS}/{fingerprint}"
        groups = [
            whole.setdefault(fingerprint, StoredModel("unfinished model", fingerprint, prefix, 0, 0, found.modified))
        ]
        if attempt:
            key = f"{prefix}/{attempt}"
            groups.append(parts.setdefault(key, StoredModel("unused copy", fingerprint, key, 0, 0, found.modified)))
        else:
            groups[0].kind = "model"
        for group in groups:
            group.objects += 1
            group.size += found.size
            group.newest = max(group.newest, found.modified)
    return whole, list(parts.values())
