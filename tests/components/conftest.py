"""The tiny screen and a pretrained run of it, made once a session for every test that only reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.normalize.step import run as normalize
from tests.tiny_screen import CONFIG, MemoryStore, TinyScreen

if TYPE_CHECKING:
    from tests.components.pretrain.training_run import TrainingRun


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStore, Manifest]:
    """Store and manifest, to be read only: folds {HUVEC-01: 0, HUVEC-02: 1, RPE-01: 0}, HUVEC-03 unlabelled."""
    folder = tmp_path_factory.mktemp("packed")
    store = MemoryStore()
    TinyScreen(folder / "screen")
    normalize(CONFIG, folder / "screen", store, folder / "screen.json", folder / "holdout.json", folder / "holdout.csv")
    return store, Manifest.read(folder / "screen.json")


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """Run tiny-1 of fold 0 with both backbones pretrained, to be read only."""
    from tests.components.pretrain.training_run import BACKBONES, TrainingRun  # loads torch

    folder = tmp_path_factory.mktemp("pretrained")
    run = TrainingRun(folder / "run", (folder / "store").as_uri())
    run.normalize(TinyScreen(folder / "screen").root, run="tiny-1")
    for backbone in BACKBONES:
        run.pretrain(backbone)
    return run


@pytest.fixture
def pretrained(pretrained_run: TrainingRun, tmp_path: Path) -> TrainingRun:
    """The pretrained run in a folder of the test's own; its store is the session's."""
    return pretrained_run.copy_to(tmp_path / "run")


@pytest.fixture
def folder_store(tmp_path: Path) -> ObjectStore:
    """An empty store in a folder of the test's."""
    return ObjectStore(tmp_path / "store")


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    """A screen that the test may change, with all its images."""
    return TinyScreen(tmp_path / "screen")
