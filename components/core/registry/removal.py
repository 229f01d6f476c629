"""Which models of a registry to remove: not the champion, nor one of the last before it, nor recently published or used ones.

    models/FINGERPRINT/manifest.json, ATTEMPT/...   a model; attempts other than its manifest's are unused copies
    models/FINGERPRINT/ATTEMPT/...                  without a manifest: of an interrupted publication, or one in progress

Objects younger than an age are never removed. A model's manifest is removed first, so an interrupted removal leaves an unused
copy, which the next one removes.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime

from components.core.errors import InputError
from components.core.registry.champion import read_champion
from components.core.registry.model_manifest import FINGERPRINT, MANIFEST, MODELS
from components.core.registry.published_models import read_model
from components.core.storage.garbage import StoredGroup, group_objects
from components.core.storage.object_store import ObjectStore
from components.core.storage.runs import read_runs

MODEL, COPY = "model", "unused copy"
_FORMS = {
    MODEL: re.compile(rf"({MODELS}/{FINGERPRINT})/(?:{MANIFEST}|[0-9a-f]{{32}}/.+)"),
    COPY: re.compile(rf"({MODELS}/{FINGERPRINT}/[0-9a-f]{{32}})/.+"),
}


def removable_models(store: ObjectStore, keep: int, cutoff: datetime) -> list[StoredGroup]:
    """Models and unused copies to remove; without a champion it is unknown which models are needed, and complete ones stay.

    The last `keep` champions before the present one stay, models younger than `cutoff`, and those that a prediction has used since.
    InputError if champion.json is damaged.
    """
    champion = read_champion(store)
    champions = dict.fromkeys(each.fingerprint for each in champion.promotions) if champion else {}
    kept = {*list(champions)[: keep + 1]}
    for run in read_runs(store):
        if run.active > cutoff and run.record and run.record.prediction:
            kept.add(run.record.prediction.model)
    objects = list(store.scan(f"{MODELS}/"))
    keys = {found.key for found in objects}
    groups = group_objects(objects, _FORMS)
    removed, in_use = [], set()
    for model in groups.values():
        if model.kind != MODEL or f"{model.prefix}/{MANIFEST}" not in keys:
            continue
        own = model.prefix  # if its manifest is damaged, it is not known which copy is unused
        with suppress(InputError):
            manifest = read_model(store, fingerprint_of(model))
            model.belongs_to, own = manifest.run, manifest.key("").rstrip("/")
        if champion and fingerprint_of(model) not in kept and model.newest <= cutoff:
            removed.append(model)
            own = model.prefix
        in_use.add(own)
    for copy in groups.values():
        if copy.kind == COPY and copy.newest <= cutoff and not in_use & {copy.prefix, copy.prefix.rpartition("/")[0]}:
            removed.append(copy)
    return removed


def fingerprint_of(group: StoredGroup) -> str:
    """Fingerprint of the model that a group belongs to."""
    return group.prefix.split("/")[1]
