"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import FinishedRun


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """An untrained run in a store of its own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "store").mkdir()
    return FinishedRun(folder, ObjectStore(folder / "store"))
