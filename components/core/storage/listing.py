"""All objects in folders of a bucket, listed in parts side by side: pages of one listing come one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from components.core.storage.object_store import ObjectStore

SPARE = 36
"""Pages that are not full, at most: each part ends in one. A million objects take a thousand full ones."""
THREADS = 12
"""Listings side by side."""


def list_in_parts(store: ObjectStore, folders: Sequence[str]) -> list[tuple[str, int, str]]:
    """Key, size and ETag of every object in some folders, however deep, in no promised order.

    Besides a request for every thousand objects it takes one a folder, and no more than SPARE for pages that are not full.

    Args:
        store: of the folders.
        folders: names without slashes; one that is not there holds nothing.

    Raises:
        InputError: the store refuses the credentials.
        StepError: the store failed.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="list") as pool:
        levels = pool.map(lambda folder: store.list_level(f"{folder}/"), folders)
        inside = {folder: level for folder, level in zip(folders, levels, strict=True) if any(level)}
        found: list[tuple[str, int, str]] = []
        whole: list[str] = []
        for folder, split in parts({folder: inner for folder, (_, inner) in inside.items()}, SPARE).items():
            whole += split
            if split != [folder]:
                objects = inside[folder][0]
                found += [(f"{folder}/{name}", size, version) for name, size, version in objects]
        for part in pool.map(lambda folder: list(store.scan_facts(folder)), whole):
            found += part
    return found


def parts(inside: dict[str, Sequence[str]], most: int) -> dict[str, list[str]]:
    """What is listed by itself, by folder: all folders in it, or it as a whole where these would be too many.

    The folders that hold most are split first.

    Args:
        inside: names of the folders in each folder.
        most: number of parts, unless there are more folders.
    """
    found = {folder: [folder] for folder in inside}
    left = most - len(found)
    for folder, inner in sorted(inside.items(), key=lambda item: -len(item[1])):
        if inner and len(inner) - 1 <= left:
            left -= len(inner) - 1
            found[folder] = [f"{folder}/{name}" for name in inner]
    return found
