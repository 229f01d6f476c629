"""Checkpoints that are saved at every opportunity, and a kill at the n-th save. For tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.core.learning.checkpoints import Checkpoints
from components.core.storage.object_store import ObjectStore

KEY = "newest.pt"


class KilledError(Exception):
    """Simulates the end of the process."""


class KilledAt(Checkpoints):
    """Saves at every opportunity, and raises KilledError after a number of saves; None never does.

    Attributes:
        saves: number of saves so far.
    """

    def __init__(self, folder: Path, saves: int | None = None) -> None:
        super().__init__(ObjectStore(folder), KEY, 0.0)
        self._last = saves
        self.saves = 0

    def save(self, state: Any) -> None:
        super().save(state)
        self.saves += 1
        if self.saves == self._last:
            self.close()
            raise KilledError
