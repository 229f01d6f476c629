"""Which models may go, and taking them away: neither the champion, nor one of the last before it, nor young. Lists and deletes.

    models/FINGERPRINT/manifest.json, ATTEMPT/...   a model; attempts that the manifest does not name are of no use
    models/FINGERPRINT/ATTEMPT/...                  without a manifest: what a killed publisher left, or one that still works

Keys of any other form are nobody's business here. A model's manifest goes first, so that a removal that is cut short
leaves nothing that is taken for whole; champion.json is fenced then, so that no promotion of the model can slip between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

from components.core.errors import InputError
from components.core.registry.champion import Champion, fence, read_versioned
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS, ModelManifest
from components.core.storage.claims import get_present
from components.core.storage.garbage import Pile
from components.core.storage.interface import ObjectStorage
from components.core.storage.inventory import ObjectInventory, StoredObject, UnfinishedUpload
from components.core.storage.sweeping import cutoff_of

_OURS = re.compile(rf"{MODELS}/({FINGERPRINT})/(?:({MANIFEST})|([0-9a-f]{{32}})/.+)")
_HIDDEN = re.compile(rf"{MODELS}/(?:{FINGERPRINT}/)?\.[^/]+\.partial")
"""What a killed writer of a manifest or of champion.json leaves in a folder."""
_ROUNDS = 10

Kind = Literal["model", "unfinished model", "unused copy", "unfinished upload"]


class ModelStore(ObjectStorage, ObjectInventory, Protocol):
    """A store that can be written conditionally and tidied up."""


@dataclass(frozen=True)
class Removable:
    """Something that may go, all of it or nothing.

    Attributes:
        kind: what it is.
        fingerprint: of the model; empty for an upload of champion.json.
        prefix: everything below it goes.
        objects: how many.
        size: bytes.
        newest: time of the youngest.
        run: of a whole model, the run that it came from; empty where its manifest cannot be read.
        upload: of an unfinished upload.
    """

    kind: Kind
    fingerprint: str
    prefix: str
    objects: int
    size: int
    newest: datetime
    run: str = ""
    upload: UnfinishedUpload | None = None


@dataclass
class _Contents:
    whole: Pile = field(default_factory=Pile)
    attempts: dict[str, Pile] = field(default_factory=dict)


def kept_models(champion: Champion | None, keep: int) -> list[str]:
    """The champion and the last different models before it.

    Args:
        champion: None where none was promoted.
        keep: how many before the champion.
    """
    if champion is None:
        return []
    return list(dict.fromkeys(promotion.fingerprint for promotion in champion.promotions))[: keep + 1]


def removable(store: ModelStore, keep: int, older_than: timedelta) -> list[Removable]:
    """What may go. Without a champion nothing says which models are needed: then whole ones stay.

    Args:
        store: of the registry.
        keep: how many champions before the present one stay.
        older_than: what is younger stays.

    Raises:
        InputError: champion.json is damaged.
        StepError: the store failed.
    """
    cutoff = cutoff_of(older_than)
    champion, _ = read_versioned(store)
    contents, uploads = _take_stock(store)
    manifests = _manifests(store, [name for name, found in contents.items() if found.whole.whole])
    kept = set(kept_models(champion, keep))
    found: list[Removable] = []
    for fingerprint, content in contents.items():
        prefix = f"{MODELS}/{fingerprint}"
        attempt, run = manifests.get(fingerprint, ("", ""))
        old = content.whole.newest <= cutoff
        if content.whole.whole and champion is not None and fingerprint not in kept and old:
            found.append(_item("model", fingerprint, prefix, content.whole, run))
        elif not content.whole.whole:
            if old:
                found.append(_item("unfinished model", fingerprint, prefix, content.whole))
        elif attempt:
            found += [
                _item("unused copy", fingerprint, f"{prefix}/{name}", pile)
                for name, pile in content.attempts.items()
                if name != attempt and pile.newest <= cutoff
            ]
    for upload in uploads:
        if upload.started <= cutoff:
            name = upload.key.split("/")[1]
            of = name if re.fullmatch(FINGERPRINT, name) else ""
            found.append(Removable("unfinished upload", of, upload.key, 1, upload.size, upload.started, upload=upload))
    return found


def remove(store: ModelStore, items: Iterable[Removable], keep: int, older_than: timedelta) -> list[Removable]:
    """Takes things away; returns those that are gone. What has come into use meanwhile stays.

    Args:
        store: of the registry.
        items: from removable.
        keep: as removable was given.
        older_than: likewise.

    Raises:
        InputError: champion.json is damaged, or the store refuses to delete.
        StepError: the store failed.
    """
    wanted = {(item.kind, item.prefix) for item in items}
    for _ in range(_ROUNDS):
        # Asked again, for the user may have thought for long.
        still = [item for item in removable(store, keep, older_than) if (item.kind, item.prefix) in wanted]
        models = [item for item in still if item.kind == "model"]
        if models:
            gone = _hide(store, models, keep)
            if gone is None:
                continue
            for item in gone:
                store.delete_many([found.key for found in _objects(store, item)])
        return [item for item in still if item.kind == "model" or _clear_away(store, item, cutoff_of(older_than))]
    raise InputError(f"{store.uri(MODELS)}: models are being promoted all the time; try again later")


def _hide(store: ModelStore, models: Sequence[Removable], keep: int) -> Sequence[Removable] | None:
    """Deletes the manifests of models; None, and all is as before, where a model was promoted meanwhile."""
    champion, version = read_versioned(store)
    kept = set(kept_models(champion, keep))
    if champion is None or any(item.fingerprint in kept for item in models):
        return None
    keys = [f"{item.prefix}/{MANIFEST}" for item in models]
    hidden = get_present(store, keys)
    store.delete_many(keys)
    if fence(store, version):
        return models
    for key, content in hidden.items():
        store.put_if_absent(key, content)
    return None


def _clear_away(store: ModelStore, item: Removable, cutoff: datetime) -> bool:
    """Deletes a leaving unless somebody has gone on with it; returns whether it is gone."""
    if item.upload is not None:
        store.give_up_upload(item.upload)
        return True
    objects = _objects(store, item)
    if any(found.modified > cutoff or found.key.endswith(f"/{MANIFEST}") for found in objects):
        return False
    store.delete_many([found.key for found in objects])
    return True


def _objects(store: ModelStore, item: Removable) -> list[StoredObject]:
    return [found for found in store.scan(f"{item.prefix}/") if _OURS.fullmatch(found.key)]


def _take_stock(store: ModelStore) -> tuple[dict[str, _Contents], list[UnfinishedUpload]]:
    contents: dict[str, _Contents] = {}
    for found in store.scan(f"{MODELS}/"):
        match = _OURS.fullmatch(found.key)
        if match:
            fingerprint, manifest, attempt = match.groups()
            content = contents.setdefault(fingerprint, _Contents())
            content.whole.add(found, bool(manifest))
            if attempt:
                content.attempts.setdefault(attempt, Pile()).add(found)
    uploads = [
        upload
        for upload in store.unfinished_uploads(f"{MODELS}/")
        if _OURS.fullmatch(upload.key) or _HIDDEN.fullmatch(upload.key)
    ]
    return contents, uploads


def _manifests(store: ModelStore, whole: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Attempt and run of each model whose manifest can be read."""
    known = {}
    for key, content in get_present(store, [f"{MODELS}/{fingerprint}/{MANIFEST}" for fingerprint in whole]).items():
        try:
            model = ModelManifest.parse(content, key)
        except InputError:
            continue
        known[model.fingerprint] = (model.attempt, model.run)
    return known


def _item(kind: Kind, fingerprint: str, prefix: str, pile: Pile, run: str = "") -> Removable:
    return Removable(kind, fingerprint, prefix, pile.objects, pile.size, pile.newest, run)
