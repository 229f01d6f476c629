"""Checkpoints that are saved at every opportunity, and a kill at the n-th save. For tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from components.core.learning.checkpoints import Checkpoints


class KilledError(Exception):
    """Simulates the end of the process."""


class LocalCheckpoint:
    """Keeps the newest checkpoint as a file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "newest.pt"

    def write(self, file: Path) -> None:
        shutil.copyfile(file, self._file)

    def read(self, file: Path) -> bool:
        if self._file.exists():
            shutil.copyfile(self._file, file)
        return self._file.exists()


class KilledAt(Checkpoints):
    """Saves at every opportunity, and raises KilledError after a number of saves; None never does.

    Attributes:
        saves: number of saves so far.
    """

    def __init__(self, folder: Path, saves: int | None = None) -> None:
        super().__init__(LocalCheckpoint(folder), 0.0)
        self._last = saves
        self.saves = 0

    def save(self, state: Any) -> None:
        super().save(state)
        self.saves += 1
        if self.saves == self._last:
            self.close()
            raise KilledError
