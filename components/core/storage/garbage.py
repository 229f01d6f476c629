"""Garbage collection of a store: removes plates, finished outputs and checkpoints that no recorded run needs.

    plates/NAME_PlateN-DIGEST/...                  a plate; plate.json is written last
    fingerprints/DIGEST.json, copies/DIGEST.json   point from a screen's files to a plate: see core.screen.packing
    finished/STEP/KEY/...                          a finished output; done.json is written last
    checkpoints/STEP/KEY/...                       state of an unfinished step
    uploads that a killed process left unfinished: parts in a bucket, temporary files in a folder

Objects younger than an age are never removed, which protects runs in progress: a run that packs has no record yet, and a step's
output is stored before its record. Packing renews the pointer to a plate that it reuses. Nothing is locked. The object that makes
a group complete is removed first, so the next collection can finish an interrupted one. Other keys are left alone.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from components.core.errors import InputError, MissingObjectError
from components.core.storage.object_store import ObjectStore, StoredObject
from components.core.storage.runs import RecordedRun

PLATE, OUTPUT, CHECKPOINT, POINTER = "plate", "finished output", "checkpoint", "plate pointer"
UPLOAD = "unfinished upload"
_FORMS = {
    PLATE: re.compile(r"(plates/[^/]+_Plate\d+-[0-9a-f]{32})/.+"),
    OUTPUT: re.compile(r"(finished/\w+/[0-9a-f]{64})/.+"),
    CHECKPOINT: re.compile(r"(checkpoints/\w+/[0-9a-f]{64})/.+"),
    POINTER: re.compile(r"((?:fingerprints|copies)/[0-9a-f]{64}\.json)"),
}
_FOLDERS = ("plates/", "finished/", "checkpoints/", "fingerprints/", "copies/")
_UPLOADED = (*_FOLDERS, "models/", "runs/", "retrainings/")
_LAST_WRITTEN = ("plate.json", "done.json", "manifest.json")
_VALID = 30.0  # seconds for which a sweep trusts what it found


@dataclass
class StoredGroup:
    """Objects that are removed together."""

    kind: str  # for example `plate`
    prefix: str  # of their keys, up to a slash; a pointer's whole key, an unfinished upload's key and id
    newest: datetime  # time of the youngest
    objects: int = 0
    size: int = 0  # bytes
    # Of a pointer, the plate that it points to; of a model, the run that trained it; empty if not known.
    belongs_to: str = ""
    upload: StoredObject | None = None  # the unfinished upload, which is no object


def group_objects(
    objects: Iterable[StoredObject], forms: Mapping[str, re.Pattern[str]] = _FORMS
) -> dict[str, StoredGroup]:
    """Groups by prefix, which a kind's form matches first. Objects that match no form are left out."""
    groups: dict[str, StoredGroup] = {}
    for found in objects:
        for kind, form in forms.items():
            if match := form.fullmatch(found.key):
                group = groups.setdefault(match[1], StoredGroup(kind, match[1], found.modified))
                group.objects += 1
                group.size += found.size
                group.newest = max(group.newest, found.modified)
    return groups


def list_groups(store: ObjectStore) -> list[StoredGroup]:
    """The store's groups; of millions of objects only sums are kept."""
    groups = group_objects(found for folder in _FOLDERS for found in store.scan(folder))
    pointers = [group.prefix for group in groups.values() if group.kind == POINTER]
    for key, content in store.get_present(pointers).items():
        try:
            groups[key].belongs_to = str(json.loads(content)["prefix"])
        except (ValueError, KeyError, TypeError):
            continue  # a power cut may leave half of a file in a folder
    return list(groups.values())


def list_uploads(store: ObjectStore) -> list[StoredGroup]:
    """The store's unfinished uploads, as groups of one; InputError if these credentials may not list them."""
    uploads = [upload for folder in _UPLOADED for upload in store.unfinished_uploads(folder)]
    return [
        StoredGroup(UPLOAD, f"{each.key} {each.version}".strip(), each.modified, 1, each.size, upload=each)
        for each in uploads
    ]


def needed_by(runs: Sequence[RecordedRun]) -> frozenset[str]:
    """Prefixes of everything that runs need; InputError if a record cannot be read, so that it is not known what its run needs."""
    for run in runs:
        if run.problem:
            raise InputError(f"{run.problem}; nothing is removed while it is not known what run {run.key} needs")
    return frozenset(prefix for run in runs for prefix in run.needs)


def find_garbage(
    groups: Sequence[StoredGroup], needed: Collection[str], cutoff: datetime | None = None
) -> list[StoredGroup]:
    """The groups of a store to remove, plates before the pointers to them; `needed` are the prefixes that recorded runs need.

    Groups younger than `cutoff` (None for now) stay, and plates that a younger pointer points to.
    """
    cutoff = cutoff or datetime.now(UTC)
    kept = {*needed, *(group.belongs_to for group in groups if group.newest > cutoff)}
    old = [group for group in groups if group.newest <= cutoff]
    garbage = [group for group in old if group.kind != POINTER and group.prefix not in kept]
    left = {group.prefix for group in groups if group.kind == PLATE} - {group.prefix for group in garbage}
    return garbage + [group for group in old if group.kind == POINTER and group.belongs_to not in left]


def sweep(
    store: ObjectStore, shown: Sequence[StoredGroup], find: Callable[[], Sequence[StoredGroup]], cutoff: datetime
) -> tuple[int, int]:
    """Removes garbage that was shown to the user, except for what has come into use or has young objects since.

    `find` finds the garbage again, first and during a long removal. Returns how many objects were removed and how many groups stay.
    """
    still: set[str] = set()
    valid_until = -math.inf
    removed = stay = 0
    for group in shown:
        if time.monotonic() > valid_until:
            still = {found.prefix for found in find()}
            valid_until = time.monotonic() + _VALID
        found = _objects_of(store, group)
        if group.prefix not in still or any(each.modified > cutoff for each in found):
            stay += 1
            continue
        removed += len(found)
        if group.upload:
            store.give_up_upload(group.upload)
            continue
        keys = [each.key for each in found]
        first = [key for key in keys if key.removeprefix(f"{group.prefix}/") in _LAST_WRITTEN]
        store.delete_many(first)
        store.delete_many([key for key in keys if key not in first])
    return removed, stay


def _objects_of(store: ObjectStore, group: StoredGroup) -> list[StoredObject]:
    if group.upload:
        return [group.upload]
    if group.kind != POINTER:
        return list(store.scan(f"{group.prefix}/"))
    try:
        return [store.head(group.prefix)]
    except MissingObjectError:
        return []
