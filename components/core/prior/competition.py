"""Which wells compete for which siRNAs: one plate for its group, or a whole experiment for all. Pure NumPy.

W wells, K treatment siRNAs; lower case w and k for the wells and siRNAs of one competition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.prior.arrangement import Arrangement
from components.core.prior.plate_groups import PlateGroups


@dataclass(frozen=True)
class Competition:
    """Wells that hold different siRNAs out of a set."""

    experiment: str
    plate: int | None
    """plate number; None where all plates of the experiment compete together"""
    wells_w: NDArray[np.intp]
    """indices of the wells, ascending"""
    classes_k: NDArray[np.intp]
    """indices of the treatment siRNAs they may hold, ascending"""

    def log_prob(self, logits_WK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log-softmax of its wells over its siRNAs, nats, shape (w, k)."""
        return np.asarray(
            scipy.special.log_softmax(logits_WK[np.ix_(self.wells_w, self.classes_k)].astype(np.float64), axis=1)
        )


def competitions(
    experiments_W: Sequence[str],
    plates_W: Sequence[int],
    arrangements: Mapping[str, Arrangement],
    groups: PlateGroups,
    prior: PriorConfig,
) -> list[Competition]:
    """Splits wells into competitions: a plate and its group where the arrangement is clear, else the whole experiment.

    Every well is in one, with an exception. Where an experiment's arrangement is not accepted, all its wells compete for all
    treatments; where it has more wells than there are treatments, siRNAs repeat and its wells are in none.

    Args:
        experiments_W: the experiment of each well.
        plates_W: the plate number of each well.
        arrangements: by experiment, for every experiment among the wells.
        groups: learned from labelled plates.
        prior: what margin and separation to accept.
    """
    experiment_W, plate_W = np.asarray(experiments_W), np.asarray(plates_W)
    found = []
    for experiment in sorted(set(experiments_W)):
        of_experiment_W = experiment_W == experiment
        arrangement = arrangements[experiment]
        if not arrangement.accepted(prior):
            everyone = np.arange(groups.treatments)
            if of_experiment_W.sum() <= len(everyone):
                found.append(Competition(experiment, None, np.flatnonzero(of_experiment_W), everyone))
            continue
        # Plates hold disjoint siRNA groups, so each is its own problem (RxRx1 design).
        for plate in np.unique(plate_W[of_experiment_W]).tolist():
            wells_w = np.flatnonzero(of_experiment_W & (plate_W == plate))
            found.append(Competition(experiment, plate, wells_w, groups.members[arrangement.groups[plate]]))
    return found
