"""One-to-one assignment of wells to siRNAs on a plate. Pure NumPy and SciPy; files live in components/assign.

W wells of a plate, K siRNAs of its group, W <= K.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray


def assign_plate(log_prob_WK: NDArray[np.float64]) -> NDArray[np.intp]:
    """The most probable naming of a plate's wells in which no siRNA appears twice.

    Row constants (any softmax normaliser) do not change it; on a square plate neither do column constants, so that
    balanced and plain log-probabilities name alike there.

    Args:
        log_prob_WK: natural-log probabilities, or logits, shape (W, K), finite.

    Returns:
        For each well the index of its siRNA, shape (W,), all different.

    Raises:
        ValueError: more wells than siRNAs, a value that is not finite, or not two axes.

    Source: linear sum assignment (Crouse 2016, doi:10.1109/TAES.2016.140952), as the CellSignal 2nd-place method
        post-processes.
    """
    if log_prob_WK.ndim != 2:
        raise ValueError(f"log-probabilities need shape (wells, siRNAs), got {log_prob_WK.shape}")
    wells, sirnas = log_prob_WK.shape
    if wells > sirnas:
        raise ValueError(f"{wells} wells cannot each hold a different one of {sirnas} siRNAs")
    if not np.isfinite(log_prob_WK).all():
        raise ValueError("log-probabilities must be finite")
    # With W <= K SciPy returns every row, in order.
    _, sirna_W = scipy.optimize.linear_sum_assignment(log_prob_WK, maximize=True)
    return sirna_W.astype(np.intp)
