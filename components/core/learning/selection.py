"""Validation accuracy that selects checkpoints: raw, group-restricted or balanced well top-1. Pure NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Score = Callable[[NDArray[np.float32]], float]
"""From validation logits, shape (W, K), to the accuracy that selects a checkpoint."""


class Best:
    """Remembers whether the last score was the best so far; ties keep the earlier one."""

    def __init__(self) -> None:
        self.score = -np.inf

    def improved(self, score: float) -> bool:
        """Whether the score is a new best, which it then is."""
        if score > self.score:
            self.score = score
            return True
        return False
