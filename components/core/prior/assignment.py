"""The three predictions of a well: raw, within its plate's group, assigned one to one. Pure NumPy and SciPy.

The wells of a plate compete for the perturbations of its group; without a clear arrangement, all wells of an experiment compete for
all treatments.

W wells, K treatment perturbations; lower case w and k for the wells and perturbations of one competition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.prior.balancing import assign_plate, balanced, without_bias
from components.core.prior.plate_groups import FEWEST_WELLS, Arrangement, PlateGroups
from components.core.screen.wells import natural_key

TOP = 5
FEW = (1, 2, 4, 8, 32, 128)
"""Numbers of wells with a temperature of their own."""


@dataclass(frozen=True)
class Competition:
    """Wells that each hold a different perturbation out of a set."""

    experiment: str
    plate: str | None
    """its name; None if all plates of the experiment compete together"""
    wells_w: NDArray[np.intp]
    """indices of the wells, ascending"""
    classes_k: NDArray[np.intp]
    """indices of the treatment perturbations they may hold, ascending"""

    def log_prob(self, logits_WK: NDArray[np.floating]) -> NDArray[np.float64]:
        """Log-softmax of its wells over its perturbations, nats, shape (w, k)."""
        return np.asarray(
            scipy.special.log_softmax(logits_WK[np.ix_(self.wells_w, self.classes_k)].astype(np.float64), axis=1)
        )

    def assigned(
        self, logits_WK: NDArray[np.floating], prior: PriorConfig
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Its wells' columns after assignment, (w,), and the balanced log-probabilities that confidences come from, (w, k).

        Those are Sinkhorn's with either method of balancing: where the greedy search has spread its arg-max evenly, its
        probabilities say little about the assignment.
        """
        # At temperature 1: temperatures are fitted on labels, which must not affect a prediction on a plate with missing wells.
        log_prob_wk = self.log_prob(logits_WK)
        balanced_wk = balanced(log_prob_wk, prior.model_copy(update={"balancing": "sinkhorn"}))
        # With missing wells, the balance's column scalings would crowd the present perturbations together.
        return assign_plate(without_bias(log_prob_wk)), balanced_wk

    def thinned(self, ids_W: Sequence[str], wells: int, most: int) -> list[Competition]:
        """Competitions of `wells` of its wells each, which have no well in common; at most so many.

        They depend on the ids of the wells, not on their order.
        """
        digests = [hashlib.sha256(ids_W[w].encode()).digest() for w in self.wells_w]
        order_w = self.wells_w[sorted(range(len(digests)), key=digests.__getitem__)]
        apart = len(order_w) // wells
        return [replace(self, wells_w=np.sort(order_w[k::apart][:wells])) for k in range(min(apart, most))]


def competitions(
    experiments_W: Sequence[str],
    plates_W: Sequence[str],
    arrangements: Mapping[str, Arrangement],
    groups: PlateGroups,
    prior: PriorConfig,
) -> list[Competition]:
    """Splits wells into competitions: each plate for its group, or a whole experiment without a clear arrangement for all.

    Such an experiment with more wells than there are treatments is in no competition, because perturbations repeat; nor is one
    with too few wells to show an arrangement.

    Args:
        experiments_W: the experiment of each well.
        plates_W: the plate of each well.
        arrangements: the arrangement of every experiment among the wells.
        groups: the groups learned from labelled plates.
        prior: the margin and separation to accept.
    """
    experiment_W, plate_W = np.asarray(experiments_W), np.asarray(plates_W)
    found = []
    for experiment in sorted(set(experiments_W)):
        of_experiment_W = experiment_W == experiment
        arrangement = arrangements[experiment]
        if not arrangement.accepted(prior):
            everyone = np.arange(groups.treatments)
            if FEWEST_WELLS <= of_experiment_W.sum() <= len(everyone):
                found.append(Competition(experiment, None, np.flatnonzero(of_experiment_W), everyone))
            continue
        # Plates hold disjoint perturbation groups, so each is its own problem (RxRx1 design).
        for plate in sorted(set(plate_W[of_experiment_W].tolist()), key=natural_key):
            wells_w = np.flatnonzero(of_experiment_W & (plate_W == plate))
            found.append(Competition(experiment, plate, wells_w, groups.members[arrangement.groups[plate]]))
    return found


@dataclass(frozen=True)
class Temperatures:
    """Softmax temperatures, fitted out of fold; 1 leaves probabilities as they are."""

    raw: float = 1.0
    """of logits over all treatments"""
    group: float = 1.0
    """of logits over the plate's group"""
    balanced: float = 1.0
    """of balanced log-probabilities"""
    few: Mapping[int, float] = field(default_factory=dict)
    """of balanced log-probabilities of plates with so few wells, ascending: the fewer, the less of their shared bias is removed"""

    def of_balanced(self, wells: int, perturbations: int) -> float:
        """The temperature of a plate's balanced log-probabilities, between those of the nearest numbers of wells."""
        known = [wells for wells in self.few if wells < perturbations]
        if wells >= perturbations or not known:
            return self.balanced
        fitted = [*(self.few[wells] for wells in known), self.balanced]
        return float(np.exp(np.interp(np.log(wells), np.log([*known, perturbations]), np.log(fitted))))

    def named(self) -> dict[str, float]:
        """By name, for a file."""
        few = {f"balanced_{wells}": value for wells, value in self.few.items()}
        return {"raw": self.raw, "group": self.group, "balanced": self.balanced, **few}

    @classmethod
    def of_names(cls, named: Mapping[str, float]) -> Temperatures:
        """From what `named` returned."""
        few = {wells: named[f"balanced_{wells}"] for wells in FEW if f"balanced_{wells}" in named}
        return cls(named["raw"], named["group"], named["balanced"], few)


@dataclass(frozen=True)
class WellPredictions:
    """The predictions of wells at each stage: class indices and calibrated probabilities, one a well."""

    perturbation_W: NDArray[np.intp]
    confidence_W: NDArray[np.float64]
    margin_W: NDArray[np.float64]
    """confidence minus the largest other probability of the well; negative if another perturbation is more probable"""
    raw_W: NDArray[np.intp]
    raw_confidence_W: NDArray[np.float64]
    raw_uncalibrated_W: NDArray[np.float64]
    """probability of the raw prediction at temperature 1"""
    group_W: NDArray[np.intp]
    group_confidence_W: NDArray[np.float64]
    top_W5: NDArray[np.intp]
    """the five most probable treatments before the prior, best first; fewer if there are fewer treatments"""


def predict_wells(
    logits_WK: NDArray[np.floating], parts: Sequence[Competition], temperatures: Temperatures, prior: PriorConfig
) -> WellPredictions:
    """Predicts wells before the prior, after the group restriction, and after assignment.

    Args:
        logits_WK: logits of the treatment classes, (W, K).
        parts: competitions, each well in one at most; the three predictions of a well in none agree.
        temperatures: for the confidences alone; no prediction depends on them.
        prior: how to balance.

    Source: post-processing of the CellSignal 2nd-place method: restrict, balance, assign.
    """
    prob_WK = scipy.special.softmax(logits_WK.astype(np.float64) / temperatures.raw, axis=1)
    everyone = np.arange(len(prob_WK))
    # Sorted by logits, because a low temperature rounds small probabilities to ties; stable, so that ties are in class
    # order, as argmax breaks them.
    top_W5 = np.argsort(-logits_WK, axis=1, kind="stable")[:, :TOP]
    raw_W = logits_WK.argmax(axis=1)
    raw_confidence_W = prob_WK[everyone, raw_W]
    raw_uncalibrated_W = scipy.special.softmax(logits_WK.astype(np.float64), axis=1)[everyone, raw_W]
    perturbation_W, group_W = raw_W.copy(), raw_W.copy()
    confidence_W, group_confidence_W = raw_confidence_W.copy(), raw_confidence_W.copy()
    margin_W = confidence_W - _largest_other(prob_WK, raw_W)
    for part in parts:
        rows_w = np.arange(len(part.wells_w))
        restricted_wk = part.log_prob(logits_WK / temperature_of(part, temperatures))
        best_w = part.log_prob(logits_WK).argmax(axis=1)
        group_W[part.wells_w] = part.classes_k[best_w]
        group_confidence_W[part.wells_w] = np.exp(restricted_wk[rows_w, best_w])
        assigned_w, balanced_wk = part.assigned(logits_WK, prior)
        prob_wk = scipy.special.softmax(balanced_wk / temperatures.of_balanced(*balanced_wk.shape), axis=1)
        perturbation_W[part.wells_w] = part.classes_k[assigned_w]
        confidence_W[part.wells_w] = prob_wk[rows_w, assigned_w]
        margin_W[part.wells_w] = prob_wk[rows_w, assigned_w] - _largest_other(prob_wk, assigned_w)
    return WellPredictions(
        perturbation_W, confidence_W, margin_W,
        raw_W, raw_confidence_W, raw_uncalibrated_W,
        group_W, group_confidence_W, top_W5,
    )  # fmt: skip


def temperature_of(part: Competition, temperatures: Temperatures) -> float:
    """The temperature of a competition's logits: `raw` if it is not restricted to a group."""
    return temperatures.raw if part.plate is None else temperatures.group


def _largest_other(prob_WK: NDArray[np.float64], chosen_W: NDArray[np.intp]) -> NDArray[np.float64]:
    """The largest probability of each row outside the chosen column; 0 if there is no other."""
    others_WK = prob_WK.copy()
    others_WK[np.arange(len(prob_WK)), chosen_W] = 0.0
    return np.asarray(others_WK.max(axis=1, initial=0.0))
