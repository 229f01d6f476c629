"""Fixtures of this folder: one finished run and its published model for all tests, and copies of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.storage.object_store import ObjectStore
from tests.components.core.registry.finished_run import FinishedRun, model, published, template

__all__ = ["model", "published", "run", "run_in_either", "template"]


@pytest.fixture
def run(template: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A finished run in a folder store."""
    return template.copy_to(ObjectStore(tmp_path / "store"))


@pytest.fixture
def run_in_either(template: FinishedRun, either_store: ObjectStore) -> FinishedRun:
    """A finished run in a store of either kind, for what depends on the store."""
    return template.copy_to(either_store)
