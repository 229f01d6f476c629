"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from components.core.storage.folder_store import FolderStore
from tests.components.core.registry.finished_run import FinishedRun


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """An untrained run in a store of its own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "store").mkdir()
    return FinishedRun(folder, FolderStore(folder / "store"))
