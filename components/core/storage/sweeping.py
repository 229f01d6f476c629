"""Takes stock of a store and removes what no run needs. Lists and deletes; what may go is decided in garbage.py.

Nothing is locked: runs and other removals may go on meanwhile. So everything is looked at again just before it goes, and
what names a thing as whole goes first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from components.core.errors import InputError
from components.core.storage.claims import Claims, get_present
from components.core.storage.garbage import DONE, PLACES, PLATE_RECORD, Contents, Garbage, find_garbage, is_ours, needed
from components.core.storage.inventory import ObjectInventory, StoredObject

_ASK_AGAIN_SECONDS = 30.0
_BATCH = 500


@dataclass
class Swept:
    """What a removal did.

    Attributes:
        objects: deleted.
        size: bytes of them.
        spared: things that a run has come to need meanwhile.
    """

    objects: int = 0
    size: int = 0
    spared: list[Garbage] = field(default_factory=list)


def take_stock(store: ObjectInventory) -> Contents:
    """Lists what lies below the prefixes of plates, outputs and checkpoints, and nothing else of the bucket."""
    contents = Contents()
    for prefix in PLACES:
        for found in store.scan(prefix):
            contents.add(found)
        for upload in store.unfinished_uploads(prefix):
            contents.add_upload(upload)
    return contents


def garbage_of(
    store: ObjectInventory, claims: Claims, contents: Contents, older_than: timedelta
) -> tuple[list[Garbage], list[Garbage]]:
    """What may go, and what no record names either but is too young.

    Args:
        store: asked which attempts won.
        claims: refreshed after the contents were listed, so that they know of all that is listed.
        contents: from take_stock.
        older_than: what is younger stays.

    Raises:
        InputError: a run's record cannot be read.
    """
    winners = _winners(store, contents)

    def older(than: timedelta) -> list[Garbage]:
        cutoff = cutoff_of(than)
        return find_garbage(contents, claims.leads, claims.needs(cutoff), winners, cutoff)

    old = older(older_than)
    known = {(item.kind, item.prefix) for item in old}
    return old, [item for item in older(timedelta()) if (item.kind, item.prefix) not in known]


def cutoff_of(older_than: timedelta) -> datetime:
    """What was written before this time is old."""
    try:
        return datetime.now(UTC) - older_than
    except OverflowError:
        raise InputError(f"--older-than: {older_than.days} days is before all time; give less") from None


def sweep(
    store: ObjectInventory,
    garbage: Iterable[Garbage],
    claims: Claims,
    older_than: timedelta,
    removed: Callable[[Garbage], None] = lambda _: None,
) -> Swept:
    """Removes garbage, thing by thing. One that is cut short is gone on with by the next removal.

    Args:
        store: where it is.
        garbage: from garbage_of.
        claims: asked again now and then, and at the beginning, since the user may have thought for long.
        older_than: as garbage_of was given.
        removed: hears of everything that is gone.

    Raises:
        InputError: the store refuses to delete.
        StepError: the store failed.
    """
    swept, cutoff = Swept(), cutoff_of(older_than)
    needs, asked = None, 0.0
    for item in garbage:
        if needs is None or time.monotonic() - asked > _ASK_AGAIN_SECONDS:
            claims.refresh()
            needs, asked = claims.needs(cutoff), time.monotonic()
        # What leads to a plate that stays after all is of use, too.
        led_to = item.plate is not None and item.plate in {spared.prefix for spared in swept.spared}
        if led_to or needed(item, needs) or not _remove(store, item, cutoff, swept):
            swept.spared.append(item)
        else:
            removed(item)
    return swept


def _remove(store: ObjectInventory, item: Garbage, cutoff: datetime, swept: Swept) -> bool:
    """Deletes one thing unless it has become young; returns whether it is gone."""
    if item.upload is not None:
        store.give_up_upload(item.upload)
        swept.size += item.size
        return True
    if item.kind == "plate lead":
        objects = [found for found in store.scan(item.prefix) if found.key == item.prefix]
    else:
        objects = [found for found in store.scan(f"{item.prefix}/") if is_ours(found.key)]
    if _in_use(store, item, objects, cutoff):
        return False
    # Small records name the large files beside them, here as in plates and finished outputs.
    keys = sorted(
        (found.key for found in objects), key=lambda key: (key != item.record, not key.endswith(".json"), key)
    )
    if item.record is not None and keys[:1] == [item.record]:
        store.delete_many(keys[:1])
        keys = keys[1:]
    store.delete_many(keys)
    swept.objects += len(objects)
    swept.size += sum(found.size for found in objects)
    if item.kind in ("plate", "unfinished plate"):
        _disown(store, item.prefix)
    return True


def _in_use(store: ObjectInventory, item: Garbage, objects: Sequence[StoredObject], cutoff: datetime) -> bool:
    """Whether something has changed since it was found to be garbage."""
    if item.kind == "checkpoint" and store.exists(f"{item.prefix.replace('checkpoints/', 'finished/', 1)}/{DONE}"):
        return False  # whose step has finished, which is why its youth does not count
    if item.kind == "unused attempt":
        place, _, attempt = item.prefix.rpartition("/")
        if _attempt(store, f"{place}/{DONE}") == attempt:
            return True
    return any(found.modified > cutoff for found in objects)


def _disown(store: ObjectInventory, prefix: str) -> None:
    """Takes the record from a plate that was packed anew while it was removed, if a chunk of it went."""
    record = f"{prefix}/{PLATE_RECORD}"
    content = get_present(store, [record]).get(record)
    if content is None:
        return
    there = {found.key for found in store.scan(f"{prefix}/")}
    sites = [site["key"] for well in json.loads(content)["wells"] for site in well["sites"]]
    if any(f"{prefix}/{key}" not in there for key in sites):
        store.delete_many([record])


def _attempt(store: ObjectInventory, done: str) -> str | None:
    """The attempt that a done.json names; None where there is none."""
    content = get_present(store, [done]).get(done)
    try:
        return None if content is None else str(json.loads(content)["attempt"])
    except (ValueError, KeyError, TypeError):
        return None


def _winners(store: ObjectInventory, contents: Contents) -> dict[str, str]:
    """The attempt that each finished output consists of; those whose record cannot be read are left out."""
    places = [place for place, pile in contents.finished.items() if pile.whole]
    winners = {}
    for start in range(0, len(places), _BATCH):
        keys = [f"{place}/{DONE}" for place in places[start : start + _BATCH]]
        for key, content in get_present(store, keys).items():
            try:
                winners[key.removesuffix(f"/{DONE}")] = str(json.loads(content)["attempt"])
            except (ValueError, KeyError, TypeError):
                continue
    return winners
