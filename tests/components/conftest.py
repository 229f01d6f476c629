"""The tiny screen, packed once a session for every test that only reads it."""

from __future__ import annotations

import pytest

from components.core.storage.manifest import Manifest
from components.normalize.step import run
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStore, Manifest]:
    """Store and manifest, to be read only: folds {HUVEC-01: 0, HUVEC-02: 1, RPE-01: 0}, HUVEC-03 unlabelled."""
    folder = tmp_path_factory.mktemp("packed")
    store = MemoryStore()
    TinyScreen(folder / "screen")
    run(CONFIG, folder / "screen", store, folder / "screen.json", folder / "holdout.json", folder / "holdout.csv")
    return store, Manifest.read(folder / "screen.json")
