"""Small predictions tables and histograms for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ROW: dict[str, Any] = {
    "score": "out_of_fold", "experiment": "RPE-01", "plate": 1, "well": "B02", "cell_type": "RPE", "fold": 0,
    "perturbation": "a", "confidence": 0.9, "margin": 0.5, "raw_perturbation": "a", "raw_confidence": 0.8,
    "raw_confidence_uncalibrated": 0.7, "group_perturbation": "a", "group_confidence": 0.85, "top5": '["a"]',
}  # fmt: skip


def predictions(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A table of wells with the values of ROW, changed by each row; `truth` is "a" unless given, None if unknown."""
    table = pd.DataFrame([{"id_code": f"w{n:02d}", **ROW, **row} for n, row in enumerate(rows)])
    return table.assign(truth=[row.get("truth", "a") for row in rows])


def histogram_of(seed: int) -> NDArray[np.int64]:
    """Counts of 256 grey levels, of which a random fraction has pixels."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 50, 256) * (rng.random(256) < rng.random() ** 2)
