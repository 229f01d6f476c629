"""Images of the tiny screen, as most tests of learning read them."""

from __future__ import annotations

import pytest

from components.core.learning.images import Images
from components.core.storage.manifest import Manifest
from tests.components.core.learning.tiny_networks import images_of
from tests.tiny_screen import MemoryStore


@pytest.fixture(scope="session")
def images(screen: tuple[MemoryStore, Manifest]) -> Images:
    """Without augmentation and jitter; to be read only."""
    return images_of(screen)
