"""All objects in a folder of a bucket, listed in a few parts side by side: pages of one listing come one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from components.core.storage.object_store import ObjectStore

PARTS = 12
"""Listings side by side. Each costs a page that is not full, so they are few; a million objects take a thousand pages."""


def list_in_parts(store: ObjectStore, folder: str) -> list[tuple[str, int, str]]:
    """Path below a folder, size and ETag of every object in it, however deep, in no promised order.

    Besides a request for every thousand objects it takes one for each part and one for the folder.

    Args:
        store: of the folder.
        folder: without a slash at its end.

    Raises:
        InputError: the store refuses the credentials.
        StepError: the store failed.
    """
    strip = len(folder) + 1
    objects, inner = store.list_level(f"{folder}/")
    found = [*objects]
    with ThreadPoolExecutor(PARTS, thread_name_prefix="list") as pool:
        parts = prefixes([f"{folder}/{name}/" for name in inner], PARTS)
        for part in pool.map(lambda prefix: list(store.scan_facts(prefix)), parts):
            found += [(key[strip:], size, version) for key, size, version in part]
    return found


def prefixes(names: Sequence[str], most: int) -> list[str]:
    """Prefixes of which each name has exactly one: as many as may be, where the names allow it, the larger groups split first.

    Args:
        names: none of which is the beginning of another, as with folders whose names end in a slash.
        most: number of prefixes.
    """
    groups = {_beginning(min(names), max(names)): list(names)} if names else {}
    whole: set[str] = set()
    while splittable := [prefix for prefix in groups if prefix not in whole and len(groups[prefix]) > 1]:
        prefix = max(splittable, key=lambda each: len(groups[each]))
        parts: dict[str, list[str]] = {}
        for name in groups[prefix]:
            parts.setdefault(name[: len(prefix) + 1], []).append(name)
        if len(groups) - 1 + len(parts) > most:
            whole.add(prefix)
            continue
        del groups[prefix]
        groups |= parts
    return sorted(groups)


def _beginning(first: str, last: str) -> str:
    """What all strings between these two begin with."""
    different = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(different, min(len(first), len(last)))]
