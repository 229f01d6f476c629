"""Garbage collection of a store: removes plates, finished outputs and checkpoints that no recorded run needs.

    plates/NAME_PlateN-DIGEST/...                  a plate; plate.json is written last
    fingerprints/DIGEST.json, copies/DIGEST.json   point from a screen's files to a plate: see core.screen.plate_record
    finished/STEP/KEY/...                          a finished output; done.json is written last
    checkpoints/STEP/KEY/...                       state of an unfinished step

Objects younger than an age are never removed, so that runs in progress are safe: a run that packs has no record yet, and the
output of a step is stored before its record. Packing renews the pointer to a plate that it reuses. Nothing is locked, and an
interrupted collection is simply run again: what makes a group complete is removed first. Other keys are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from components.core.errors import InputError
from components.core.storage.inventory import ObjectInventory, StoredObject
from components.core.storage.recorded_runs import get_present, needed_by, read_runs

Kind = Literal["plate", "finished output", "checkpoint", "plate pointer"]

_FORMS: dict[Kind, re.Pattern[str]] = {
    "plate": re.compile(r"(plates/[^/]+_Plate\d+-[0-9a-f]{32})/.+"),
    "finished output": re.compile(r"(finished/\w+/[0-9a-f]{64})/.+"),
    "checkpoint": re.compile(r"(checkpoints/\w+/[0-9a-f]{64})/.+"),
    "plate pointer": re.compile(r"((?:fingerprints|copies)/[0-9a-f]{64}\.json)"),
}
_FOLDERS = ("plates/", "finished/", "checkpoints/", "fingerprints/", "copies/")
_LAST_WRITTEN = ("plate.json", "done.json")


@dataclass
class StoredGroup:
    """Objects that are removed together.

    Attributes:
        kind: what they are.
        prefix: of their keys; of a pointer the key itself.
        objects: how many.
        size: bytes.
        newest: time of the youngest.
        plate: prefix of the plate that a pointer points to; empty if it cannot be read.
    """

    kind: Kind
    prefix: str
    objects: int
    size: int
    newest: datetime
    plate: str = ""


def group_objects(objects: Iterable[StoredObject]) -> dict[str, StoredGroup]:
    """The groups of objects by prefix; objects of no group are left out."""
    groups: dict[str, StoredGroup] = {}
    for found in objects:
        for kind, form in _FORMS.items():
            if match := form.fullmatch(found.key):
                group = groups.setdefault(match[1], StoredGroup(kind, match[1], 0, 0, found.modified))
                group.objects += 1
                group.size += found.size
                group.newest = max(group.newest, found.modified)
    return groups


def list_groups(store: ObjectInventory) -> list[StoredGroup]:
    """Lists the store; of millions of objects only sums are kept."""
    groups = group_objects(found for folder in _FOLDERS for found in store.scan(folder))
    pointers = [group.prefix for group in groups.values() if group.kind == "plate pointer"]
    for key, content in get_present(store, pointers).items():
        try:
            groups[key].plate = str(json.loads(content)["prefix"])
        except (ValueError, KeyError, TypeError):
            continue  # a power cut may leave half of a file in a folder
    return list(groups.values())


def cutoff_of(older_than: timedelta) -> datetime:
    """What was written after this time is younger than the age."""
    try:
        return datetime.now(UTC) - older_than
    except OverflowError:
        raise InputError(f"--older-than: {older_than.days} days is before all time; give less") from None


def find_garbage(groups: Sequence[StoredGroup], needed: Collection[str], cutoff: datetime) -> list[StoredGroup]:
    """The groups to remove, plates before what points to them.

    Args:
        groups: all of the store.
        needed: prefixes that recorded runs need.
        cutoff: what is younger stays, as does a plate that a younger pointer points to.
    """
    kept = {*needed, *(group.plate for group in groups if group.newest > cutoff)}
    old = [group for group in groups if group.newest <= cutoff]
    garbage = [group for group in old if group.kind != "plate pointer" and group.prefix not in kept]
    left = {group.prefix for group in groups if group.kind == "plate"} - {group.prefix for group in garbage}
    return garbage + [group for group in old if group.kind == "plate pointer" and group.plate not in left]


def sweep(store: ObjectInventory, garbage: Sequence[StoredGroup], cutoff: datetime) -> tuple[int, int]:
    """Removes garbage, except for what has come into use since it was found.

    Args:
        store: where it is.
        garbage: from find_garbage.
        cutoff: as there.

    Returns:
        How many objects were removed, and how many groups stay.

    Raises:
        InputError: the store refuses to delete, or a record cannot be read.
        StepError: the store failed.
    """
    still = {group.prefix for group in find_garbage(list_groups(store), needed_by(read_runs(store)), cutoff)}
    removed = stay = 0
    for group in garbage:
        objects = [found for found in store.scan(group.prefix) if group.prefix in group_objects([found])]
        if group.prefix not in still or any(found.modified > cutoff for found in objects):
            stay += 1
            continue
        keys = [found.key for found in objects]
        first = [key for key in keys if key.removeprefix(f"{group.prefix}/") in _LAST_WRITTEN]
        if first:
            store.delete_many(first)
        store.delete_many([key for key in keys if key not in first])
        removed += len(keys)
    return removed, stay
