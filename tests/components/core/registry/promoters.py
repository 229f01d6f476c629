"""Processes that promote models at the same time, as CI runs do. For tests."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.synchronize import Barrier
from typing import Any

from components.core.registry.champion import promote
from components.core.storage.opening import open_store

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["components.core.registry.champion", "components.core.storage.object_store"])


def until_promoted(
    address: str, environment: Mapping[str, str], number: int, fingerprint: str, barrier: Barrier, results: Any
) -> None:
    """Promotes its model once, trying again while others come first."""
    os.environ.update(environment)
    store = open_store(address)
    barrier.wait(120)
    while promote(store, fingerprint, "mine", by=f"promoter {number}").outcome == "overtaken":
        pass
    results.put(number)


def until_killed(address: str, number: int, fingerprints: tuple[str, ...], ready: Any) -> None:
    """Promotes its models in turn until it is killed."""
    store = open_store(address)
    n = 0
    while True:
        promote(store, fingerprints[n % len(fingerprints)], "in turn", by=f"promoter {number}")
        if n == 3:
            ready.release()
        n += 1
