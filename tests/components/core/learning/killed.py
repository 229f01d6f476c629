"""Checkpoints that are saved after every step, and a kill at the n-th of them. For tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from components.core.learning.checkpoints import Checkpoints


class KilledError(Exception):
    """The process is gone."""


class LocalPlace:
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
    """Saves whenever asked, and dies when it has saved so often; None lives on.

    Attributes:
        saves: how often it has saved.
    """

    def __init__(self, folder: Path, saves: int | None = None) -> None:
        super().__init__(LocalPlace(folder), 0.0)
        self._last = saves
        self.saves = 0

    def save(self, state: Any) -> None:
        super().save(state)
        self.saves += 1
        if self.saves == self._last:
            self.close()
            raise KilledError
