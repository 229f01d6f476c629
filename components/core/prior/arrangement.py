"""Which plate of an experiment holds which plate group, inferred from logits. Pure NumPy and SciPy.

W wells of a plate, K treatment siRNAs, P plates of the design, G = P groups. Labels of the experiment are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations as orders
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.errors import InputError
from components.core.prior.assignment import assign_plate
from components.core.prior.plate_groups import LabelledWell, NoPlateDesignError, PlateGroups, learn_groups

Permutations = Literal["cyclic", "all"]
# Candidates are listed one by one; 8! = 40,320 is the most that stays instant.
MOST_PLATES = 8


@dataclass(frozen=True)
class Arrangement:
    """The most probable group on each plate of one experiment."""

    groups: Mapping[int, int]
    """group index by plate number"""
    margin: float
    """lead over the second best arrangement in summed log-probability, nats; infinite where there is only one"""
    separation: float
    """the margin in units of its standard error, taken over wells: it does not grow with the logits' scale"""
    scores: tuple[tuple[tuple[int, ...], float], ...]
    """every arrangement (groups in plate order) with its summed log-probability in nats, best first"""
    problem: str = ""
    """why the experiment fits no arrangement at all, margin and separation being NaN; empty where it does"""

    def accepted(self, prior: PriorConfig) -> bool:
        """Whether the lead is large enough to build on, by `min_margin` and `min_separation`."""
        return not self.problem and self.margin >= prior.min_margin and self.separation >= prior.min_separation


def check_design(wells: Iterable[LabelledWell], treatments: Sequence[str], prior: PriorConfig) -> None:
    """Finds out before anything is trained whether the labelled plates' design can be used with this configuration.

    Labelled plates without any groups are fine, unless `on_low_margin` is `refuse`: they are named without the prior.

    Args:
        wells: all labelled treatment wells.
        treatments: the treatment labels in class order.
        prior: with `enabled` false there is nothing to check.

    Raises:
        InputError: a mistake in the design, or experiments whose plates are no rotations of one another.
    """
    if not prior.enabled:
        return
    try:
        candidates(learn_groups(wells, treatments), prior.permutations)
    except NoPlateDesignError:
        if prior.on_low_margin == "refuse":
            raise


def candidates(groups: PlateGroups, permutations: Permutations) -> tuple[tuple[int, ...], ...]:
    """The arrangements an experiment may have, each as group indices in the order of `groups.plates`.

    `cyclic`: the labelled experiments define the cycle. Every cycle through the plates of which they are rotations
    counts, with all its rotations; RxRx1's three labelled rotations leave one cycle, hence four arrangements, of which
    one is seen in unlabelled experiments only. Labelled experiments that are all arranged alike leave several cycles.
    `all`: every permutation.

    Raises:
        InputError: no cycle explains the labelled experiments, or more than eight plates.
    """
    count = len(groups.plates)
    if count > MOST_PLATES:
        raise InputError(
            f"an experiment has {count} plates; plate groups are inferred for at most {MOST_PLATES}: "
            "set prior.enabled to false"
        )
    if permutations == "all":
        return tuple(orders(range(count)))
    known = {full for placed in groups.arrangements.values() if (full := _complete(placed, groups.plates)) is not None}
    if not known:
        return tuple(orders(range(count)))
    first = min(known)
    found: set[tuple[int, ...]] = set()
    for rest in orders(range(1, count)):
        ring = (0, *rest)
        rotations = {tuple(first[ring[(ring.index(p) + turn) % count]] for p in range(count)) for turn in range(count)}
        if known <= rotations:
            found |= rotations
    if not found:
        raise InputError(
            "the plates of the labelled experiments are not rotations of one another; set prior.permutations to all"
        )
    return tuple(sorted(found))


def infer_arrangement(
    logits_by_plate: Mapping[int, NDArray[np.floating]],
    groups: PlateGroups,
    permutations: Permutations,
    experiment: str,
) -> Arrangement:
    """The arrangement with the largest total assignment score over the experiment's plates.

    The score of a group on a plate is the largest summed log-probability of a one-to-one naming of its wells within the
    group; it is computed once for each of the P x G pairs, so that permutations cost additions only.

    Args:
        logits_by_plate: treatment logits or log-probabilities by plate number, each (W, K); plates may be missing. As
            the network gives them: a temperature fitted on labels would let labels decide which arrangement is accepted.
        groups: learned from labelled plates.
        permutations: which arrangements to choose among.
        experiment: its name, for errors.

    Raises:
        InputError: a plate number the labelled experiments do not have, or more wells than any group has siRNAs.
        ValueError: no plates, logits of the wrong shape, or not finite.

    Source: the plate restriction of the CellSignal 2nd-place method, here for any group-to-plate permutation.
    """
    if not logits_by_plate:
        raise ValueError(f"experiment {experiment} has no plates")
    for plate in logits_by_plate:
        if plate not in groups.plates:
            raise InputError(
                f"experiment {experiment} has a plate {plate}, but labelled experiments have plates "
                f"{', '.join(map(str, groups.plates))}; set prior.enabled to false"
            )
    present = [p for p, plate in enumerate(groups.plates) if plate in logits_by_plate]
    score_PGW = {
        p: _group_scores(logits_by_plate[plate], groups, f"experiment {experiment} plate {plate}")
        for p, plate in enumerate(groups.plates)
        if p in present
    }
    total_PG = {p: score_GW.sum(axis=1) for p, score_GW in score_PGW.items()}
    # With plates missing, arrangements that agree on the present ones are one and the same.
    distinct = sorted({tuple(held[p] for p in present) for held in candidates(groups, permutations)})
    total = [float(sum(total_PG[p][group] for p, group in zip(present, held, strict=True))) for held in distinct]
    ranked = sorted(zip(distinct, total, strict=True), key=lambda item: (-item[1], item[0]))
    best, best_score = ranked[0]
    if best_score == -np.inf:
        raise InputError(
            f"experiment {experiment}: no arrangement of the plate groups has room for all its wells; "
            "set prior.enabled to false"
        )
    margin = separation = float("inf")
    if len(ranked) > 1 and ranked[1][1] > -np.inf:
        second, second_score = ranked[1]
        margin = best_score - second_score
        lead_W = np.concatenate(
            [score_PGW[p][a] - score_PGW[p][b] for p, a, b in zip(present, best, second, strict=True)]
        )
        # Wells of an assignment are not independent, which makes the sum steadier than this says: a cautious figure.
        error = float(np.sqrt(len(lead_W)) * lead_W.std())
        separation = margin / error if error > 0 else float("inf" if margin > 0 else 0)
    return Arrangement(
        groups={groups.plates[p]: group for p, group in zip(present, best, strict=True)},
        margin=margin,
        separation=separation,
        scores=tuple(ranked),
    )


def infer_arrangements(
    logits_WK: NDArray[np.floating],
    experiments_W: Sequence[str],
    plates_W: Sequence[int],
    groups: PlateGroups,
    permutations: Permutations,
) -> dict[str, Arrangement]:
    """The arrangement of every experiment among the wells, by experiment in sorted order; see `infer_arrangement`.

    An experiment that fits no arrangement (an unknown plate, more wells than a group has siRNAs) has a `problem` instead.

    Args:
        logits_WK: treatment logits, (W, K).
        experiments_W: the experiment of each well.
        plates_W: the plate number of each well.
        groups: learned from labelled plates.
        permutations: which arrangements to choose among.
    """
    found = {}
    experiment_W, plate_W = np.asarray(experiments_W), np.asarray(plates_W)
    for experiment in sorted(set(experiments_W)):
        of_experiment_W = experiment_W == experiment
        by_plate = {
            int(plate): logits_WK[of_experiment_W & (plate_W == plate)] for plate in np.unique(plate_W[of_experiment_W])
        }
        try:
            found[experiment] = infer_arrangement(by_plate, groups, permutations, experiment)
        except InputError as error:
            found[experiment] = Arrangement({}, math.nan, math.nan, (), str(error))
    return found


def renamed(arrangement: Arrangement, known: PlateGroups, names: PlateGroups) -> Arrangement:
    """The same arrangement with its groups called as in another learning of the same design.

    Groups have no names of their own, so two learnings may number them differently; the one that shares most siRNAs is
    the same group.

    Args:
        arrangement: its groups numbered as in `known`.
        known: the groups it was inferred with.
        names: the groups whose numbers to use.
    """
    shared_GG = np.array([[len(np.intersect1d(own, other)) for other in names.members] for own in known.members])
    number_G = shared_GG.argmax(axis=1)
    return replace(arrangement, groups={plate: int(number_G[group]) for plate, group in arrangement.groups.items()})


def _group_scores(logits_WK: NDArray[np.floating], groups: PlateGroups, where: str) -> NDArray[np.float64]:
    """Each well's share of the best naming of a plate within each group, nats, (G, W); -inf where there is no room."""
    if logits_WK.ndim != 2 or logits_WK.shape[1] != groups.treatments:
        raise ValueError(f"{where}: logits of shape {logits_WK.shape}, expected (wells, {groups.treatments})")
    largest = max(len(classes) for classes in groups.members)
    if len(logits_WK) > largest:
        raise InputError(
            f"{where} has {len(logits_WK)} treatment wells, but no plate group has more than {largest} siRNAs; "
            "correct its wells, or set prior.enabled to false"
        )
    log_prob_WK = scipy.special.log_softmax(logits_WK.astype(np.float64), axis=1)
    score_GW = np.full((len(groups.members), len(log_prob_WK)), -np.inf)
    for group, classes in enumerate(groups.members):
        if len(log_prob_WK) <= len(classes):
            within_WK = log_prob_WK[:, classes]
            score_GW[group] = within_WK[np.arange(len(within_WK)), assign_plate(within_WK)]
    return score_GW


def _complete(placed: Mapping[int, int], plates: Iterable[int]) -> tuple[int, ...] | None:
    """An experiment's groups in plate order, a single missing plate filled in; None where more are missing."""
    numbers = list(plates)
    missing = [plate for plate in numbers if plate not in placed]
    if len(missing) > 1:
        return None
    left = set(range(len(numbers))) - set(placed.values())
    return tuple(placed[plate] if plate in placed else min(left) for plate in numbers)
