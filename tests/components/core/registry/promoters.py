"""Promoters as CI runs are: processes of their own, that know nothing of each other. For tests."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from typing import Any

from components.core.registry.champion import promote, read_champion
from components.core.storage.opening import open_store

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["components.core.registry.champion", "components.core.storage.object_store"])


def in_rounds(
    address: str,
    environment: Mapping[str, str],
    number: int,
    fingerprint: str,
    rounds: int,
    barrier: Barrier,
    told: Any,
) -> None:
    """Promotes its model once a round, on the champion that all have seen at its beginning."""
    os.environ.update(environment)
    store = open_store(address)
    for n in range(rounds):
        barrier.wait(120)
        seen = read_champion(store)
        barrier.wait(120)
        generation = seen.now.generation if seen else 0
        change = promote(store, fingerprint, f"round {n}", by=f"promoter {number}", expected=generation)
        told.put((n, number, change.outcome, change.champion.now.by))
        barrier.wait(120)


def until_promoted(
    address: str, environment: Mapping[str, str], number: int, fingerprint: str, barrier: Barrier, told: Any
) -> None:
    """Promotes its model once, trying again as long as others come first; tells how often it tried."""
    os.environ.update(environment)
    store = open_store(address)
    barrier.wait(120)
    tries = 1
    while promote(store, fingerprint, "mine", by=f"promoter {number}").outcome == "overtaken":
        tries += 1
    told.put((number, tries))


def for_ever(
    address: str, environment: Mapping[str, str], number: int, fingerprints: tuple[str, ...], ready: Any
) -> None:
    """Promotes its models in turn until it is killed."""
    os.environ.update(environment)
    store = open_store(address)
    n = 0
    while True:
        promote(store, fingerprints[n % len(fingerprints)], "in turn", by=f"promoter {number}")
        if n == 3:
            ready.release()
        n += 1
