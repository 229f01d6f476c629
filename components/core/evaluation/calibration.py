"""Temperature scaling of confidences, fitted out of fold. Pure NumPy and SciPy.

W wells, K classes that a well may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

# A fit on few wells that are all right would run away to zero; beyond these bounds a probability means nothing anyway.
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Sequence[NDArray[np.floating]], truth: Sequence[NDArray[np.intp]]) -> float:
    """The temperature T that makes softmax(logits / T) most likely on wells whose class is known.

    Args:
        logits: blocks of logits or log-probabilities, each (W, K); blocks may have different classes, like plates do.
        truth: for each block the column of the true class of each well, (W,); -1 where it is not among the columns,
            which no temperature can mend: such wells do not count.

    Returns:
        T in [0.05, 20], at least one well given.

    Raises:
        ValueError: no well counts, or shapes differ.

    Source: Guo et al. 2017 (arXiv:1706.04599), minimising the negative log-likelihood over log T.
    """
    kept = []
    for logits_WK, truth_W in zip(logits, truth, strict=True):
        if logits_WK.shape[:1] != truth_W.shape:
            raise ValueError(f"{len(logits_WK)} rows of logits but {len(truth_W)} true classes")
        known_W = truth_W >= 0
        if known_W.any():
            kept.append((logits_WK[known_W].astype(np.float64), truth_W[known_W]))
    if not kept:
        raise ValueError("no well with a known class to fit a temperature on")
    # The mean true logit is linear in 1/T, so only the normaliser is computed again for every T.
    true_sum = sum(float(block_WK[np.arange(len(truth_W)), truth_W].sum()) for block_WK, truth_W in kept)

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        return sum(
            float(scipy.special.logsumexp(block_WK / t, axis=1).sum()) for block_WK, _ in kept
        ) - true_sum / float(t)

    best = scipy.optimize.minimize_scalar(
        loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-3}
    )
    return float(np.exp(best.x))
