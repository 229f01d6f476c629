"""A tiny screen on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_screen import TinyScreen


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    """All tables, and the images of the first experiment."""
    return TinyScreen(tmp_path / "screen", imaged=["HUVEC-01"])
