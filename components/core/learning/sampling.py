"""Which wells make a training batch: any of them, or those of one domain. Pure NumPy.

W wells of an epoch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def well_batches(
    wells: NDArray[np.intp], size: int, rng: np.random.Generator, domain_W: NDArray[np.intp] | None = None
) -> list[NDArray[np.intp]]:
    """An epoch's batches: every well once, in random order, batches of nearly equal size.

    With domains a batch holds wells of one domain, so that BatchNorm normalises each domain by itself; batches of all
    domains come in random order. A domain of a single well is left out: BatchNorm would have nothing to average.

    Args:
        wells: rows of the well table.
        size: wells of a batch, about: a domain is cut into the nearest number of equal parts.
        rng: draws the order.
        domain_W: domain of every well of the table; None where batches may hold any.
    """
    order = rng.permutation(wells)
    if domain_W is None:
        return list(np.array_split(order, max(1, round(len(order) / size))))
    order = order[np.argsort(domain_W[order], kind="stable")]
    starts = np.flatnonzero(np.diff(domain_W[order])) + 1
    batches = [
        part
        for of_domain in np.split(order, starts)
        if len(of_domain) > 1
        for part in np.array_split(of_domain, max(1, min(round(len(of_domain) / size), len(of_domain) // 2)))
    ]
    return [batches[k] for k in rng.permutation(len(batches))]
