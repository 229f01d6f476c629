"""A tiny screen on disk and, packed, in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.storage.manifest import Manifest
from components.normalize.step import run
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    """All tables, and the images of the first experiment."""
    return TinyScreen(tmp_path / "screen", imaged=["HUVEC-01"])


@pytest.fixture(scope="session")
def packed_screen(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStore, Manifest]:
    """The tiny screen in a store, to be read only."""
    folder = tmp_path_factory.mktemp("packed")
    store = MemoryStore()
    TinyScreen(folder / "screen")
    run(CONFIG, folder / "screen", store, folder / "screen.json", folder / "holdout.json", folder / "holdout.csv")
    return store, Manifest.read(folder / "screen.json")
