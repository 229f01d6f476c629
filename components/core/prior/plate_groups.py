"""The plate design: which perturbations share a plate, and which plate of an experiment holds which group. Pure NumPy and SciPy.

Each plate of an experiment holds one plate group; experiments differ in their arrangement, which plate holds which. Groups are
learned from labelled plates; the arrangement of an experiment is inferred from its logits, never from its labels.

N labelled plates, K treatment perturbations, W wells of a plate, P plates of the design, G = P groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from itertools import permutations as orders
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.config import PriorConfig
from components.core.errors import InputError, shortened
from components.core.prior.balancing import assign_plate, without_bias
from components.core.screen.wells import Plate, natural_key
from components.core.storage.manifest import PlateRecord

Permutations = Literal["cyclic", "all"]
WITHOUT_DESIGN = "wells are predicted without a plate design"
"""What messages say before the reason."""
# Candidates are enumerated; 8! = 40,320 of them still take no noticeable time.
MOST_PLATES = 8
# Two plates hold the same group if they share more than half of the smaller one's perturbations: plates of one group differ
# by a few missing wells, plates of two groups share nothing, so both are far from one half.
SAME_GROUP_OVERLAP = 0.5
# Fewer wells than this show no arrangement, however much they prefer one.
FEWEST_WELLS = 3
# Up to this fraction of wells outside their perturbation's group is a labelling mistake to report; with more there is no design.
MOST_STRAYS = 0.05


class LabelledWell(NamedTuple):
    """One labelled treatment well."""

    experiment: str
    plate: str
    perturbation: str


class NoPlateDesignError(InputError):
    """The plates show no groups, or none that can be transferred; a caller may continue without the prior and give the `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; set prior.enabled to false")
        self.reason = reason


@dataclass(frozen=True)
class PlateGroups:
    """The partition of the treatments into plate groups, numbered by first appearance, and the labelled arrangements."""

    plates: tuple[str, ...]
    """plates of the design, in natural order"""
    members: tuple[NDArray[np.intp], ...]
    """treatment class indices of each group, ascending"""
    arrangements: Mapping[str, Mapping[str, int]]
    """for each labelled experiment the group on each of its plates"""

    @property
    def treatments(self) -> int:
        """Number of treatment perturbations, K."""
        return sum(len(classes) for classes in self.members)

    def group_of_class(self) -> NDArray[np.intp]:
        """The group of each treatment class, shape (K,)."""
        group_K = np.empty(self.treatments, dtype=np.intp)
        for group, classes in enumerate(self.members):
            group_K[classes] = group
        return group_K


def labelled_treatments(
    plates: Iterable[PlateRecord | Plate], experiments: Container[str] | None = None
) -> list[LabelledWell]:
    """The labelled treatment wells of plates.

    Args:
        plates: plates from a manifest or from a screen's tables.
        experiments: the experiments whose labels may be read, such as a fold's training experiments; None for all labelled.
    """
    return [
        LabelledWell(plate.experiment, plate.plate, well.perturbation)
        for plate in plates
        if plate.labelled and (experiments is None or plate.experiment in experiments)
        for well in plate.wells
        if well.role == "treatment" and well.perturbation is not None
    ]


def learn_groups(wells: Iterable[LabelledWell], treatments: Sequence[str]) -> PlateGroups:
    """Learns the plate groups from labelled treatment wells; tolerates missing wells and missing plates.

    Args:
        wells: labelled treatment wells.
        treatments: the treatment labels in class order.

    Raises:
        NoPlateDesignError: the layout has no groups: no labelled wells, perturbations repeated on a plate, plates of one
            experiment that share their perturbations, or perturbations scattered over plates; or none that can be
            transferred: more than eight plates, or plates of other names in every experiment.
        InputError: a design with a mistake in it: a perturbation in two groups or of unknown group, a number of groups that is not
            the number of plates, or a label that is no treatment.
    """
    index = {label: k for k, label in enumerate(treatments)}
    wells = list(wells)
    rows = sorted({(well.experiment, well.plate) for well in wells}, key=lambda row: (row[0], natural_key(row[1])))
    if not rows:
        raise NoPlateDesignError("no labelled treatment wells to learn plate groups from")
    row = {key: n for n, key in enumerate(rows)}
    holds_NK = np.zeros((len(rows), len(treatments)), dtype=bool)
    for experiment, plate, perturbation in wells:
        if perturbation not in index:
            raise InputError(
                f"experiment {experiment} plate {plate}: {perturbation} is not a treatment; correct its label"
            )
        n, k = row[experiment, plate], index[perturbation]
        if holds_NK[n, k]:
            raise NoPlateDesignError(f"{perturbation} is on plate {plate} of experiment {experiment} more than once")
        holds_NK[n, k] = True
    check_correspondence(rows)

    group_N = _cluster(holds_NK)
    groups = int(group_N.max()) + 1
    # A perturbation's home is the group on whose plates it is seen most often; -1 if it is on no plate.
    votes_GK = np.stack([holds_NK[group_N == group].sum(axis=0) for group in range(groups)])
    home_K = np.where(votes_GK.any(axis=0), votes_GK.argmax(axis=0), -1).astype(np.intp)
    _check_strays(holds_NK, group_N, home_K, rows, treatments)
    arrangements = _arrange(group_N, rows)
    plates = tuple(sorted({plate for _, plate in rows}, key=natural_key))
    if len(plates) > MOST_PLATES:
        raise NoPlateDesignError(
            f"an experiment has {len(plates)} plates; plate groups are inferred for at most {MOST_PLATES}"
        )
    if groups != len(plates):
        odd = rows[int(np.flatnonzero(group_N == np.bincount(group_N).argmin())[0])]
        raise InputError(
            f"the labelled plates hold {groups} groups of treatments but experiments have {len(plates)} plates; "
            f"experiment {odd[0]} plate {odd[1]} fits no group: correct it, or set prior.enabled to false"
        )
    home_K = _infer_unseen(home_K, groups, treatments)
    members = tuple(np.flatnonzero(home_K == group) for group in range(groups))
    return PlateGroups(plates, members, arrangements)


def check_correspondence(rows: Iterable[tuple[str, str]]) -> None:
    """Checks that plates of the same name are in several experiments, so that what one holds tells of the others.

    Which plate of one experiment is like which of another is not guessed from their order.

    Args:
        rows: experiment and plate of each plate.

    Raises:
        NoPlateDesignError: more than half of the plates have a name that no other experiment has, such as a barcode.
    """
    of_experiment: dict[str, set[str]] = {}
    for experiment, plate in rows:
        of_experiment.setdefault(experiment, set()).add(plate)
    if len(of_experiment) < 2:
        return
    count = Counter(plate for own in of_experiment.values() for plate in own)
    alone = sum(plates == 1 for plates in count.values())
    if alone > count.total() / 2:
        shown = (
            f"{experiment} has {shortened(sorted(own, key=natural_key))}" for experiment, own in of_experiment.items()
        )
        raise NoPlateDesignError(f"plates have other names in every experiment ({', '.join(islice(shown, 2))})")


def _cluster(holds_NK: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The group of each plate, numbered by first appearance, shape (N,)."""
    size_N = holds_NK.sum(axis=1)
    shared_NN = holds_NK.astype(np.float64) @ holds_NK.T.astype(np.float64)
    same_NN = shared_NN > SAME_GROUP_OVERLAP * np.minimum(size_N[:, None], size_N[None, :])
    _, group_N = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_array(same_NN), directed=False)
    _, first, inverse = np.unique(group_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.intp)


def _check_strays(
    holds_NK: NDArray[np.bool_],
    group_N: NDArray[np.intp],
    home_K: NDArray[np.intp],
    rows: Sequence[tuple[str, str]],
    treatments: Sequence[str],
) -> None:
    stray_NK = holds_NK & (group_N[:, None] != home_K[None, :])
    if stray_NK.sum() > MOST_STRAYS * holds_NK.sum():
        raise NoPlateDesignError(
            f"{stray_NK.sum()} of {holds_NK.sum()} labelled wells are outside their treatment's plate group: "
            "this screen has no plate groups"
        )
    if stray_NK.any():
        n, k = (int(i[0]) for i in np.nonzero(stray_NK))
        experiment, plate = rows[n]
        other = rows[int(np.flatnonzero(holds_NK[:, k] & (group_N == home_K[k]))[0])]
        raise InputError(
            f"experiment {experiment} plate {plate}: {treatments[k]} is in two plate groups, here and on "
            f"experiment {other[0]} plate {other[1]}; correct the wrong label, or set prior.enabled to false"
        )


def _arrange(group_N: NDArray[np.intp], rows: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    arrangements: dict[str, dict[str, int]] = {}
    for (experiment, plate), group in zip(rows, group_N.tolist(), strict=True):
        placed = arrangements.setdefault(experiment, {})
        twin = next((number for number, held in placed.items() if held == group), None)
        if twin is not None:
            raise NoPlateDesignError(
                f"plates {twin} and {plate} of experiment {experiment} hold the same treatments: this screen has no plate groups"
            )
        placed[plate] = group
    return arrangements


def _infer_unseen(home_K: NDArray[np.intp], groups: int, treatments: Sequence[str]) -> NDArray[np.intp]:
    """Puts perturbations that are on no labelled plate into the only group of an even design that has room for them."""
    unseen = np.flatnonzero(home_K < 0)
    if len(unseen) == 0:
        return home_K
    room_G = len(treatments) / groups - np.bincount(home_K[home_K >= 0], minlength=groups)
    short = np.flatnonzero(room_G != 0)
    if len(short) != 1:
        raise InputError(
            f"{treatments[unseen[0]]} is on no labelled plate, so its plate group is not known ({len(unseen)} such "
            "treatments); add an experiment that holds it, or set prior.enabled to false"
        )
    return np.where(home_K < 0, short[0], home_K).astype(np.intp)


@dataclass(frozen=True)
class Arrangement:
    """The most probable group on each plate of one experiment."""

    groups: Mapping[str, int]
    """group index by plate"""
    margin: float
    """lead over the second best arrangement in summed log-probability, nats; infinite if there is only one"""
    separation: float
    """the margin in units of its standard error over wells, which does not grow with the logits' scale"""
    problem: str = ""
    """why the experiment fits no arrangement, in which case margin and separation are NaN; empty if it fits one"""

    def accepted(self, prior: PriorConfig) -> bool:
        """Whether the lead is large enough to use, by `min_margin` and `min_separation`."""
        return not self.problem and self.margin >= prior.min_margin and self.separation >= prior.min_separation


def check_design(
    plates: Sequence[Plate],
    treatments: Sequence[str],
    prior: PriorConfig,
    split: Literal["experiment", "plate", "well"],
) -> str:
    """Checks before training whether the labelled plates' design can be used with this configuration.

    Labelled plates without groups are accepted unless `on_low_margin` is `refuse`: they are predicted without the prior.

    Args:
        plates: the screen's plates without those held out.
        treatments: the treatment labels in class order.
        prior: the settings.
        split: what a fold holds out.

    Returns:
        Why there is no design to use; empty if there is one, or the prior is off.

    Raises:
        InputError: a mistake in the design, or experiments whose plates are no rotations of one another.
    """
    if not prior.enabled:
        return ""
    try:
        if split != "experiment":
            raise NoPlateDesignError(f"folds hold out {split}s, which the rest of their experiment would reveal")
        candidates(learn_groups(labelled_treatments(plates), treatments), prior.permutations)
        check_correspondence((plate.experiment, plate.plate) for plate in plates)
    except NoPlateDesignError as error:
        if prior.on_low_margin == "refuse":
            raise
        return error.reason
    return ""


def candidates(groups: PlateGroups, permutations: Permutations) -> tuple[tuple[int, ...], ...]:
    """The arrangements an experiment may have, each as group indices in the order of `groups.plates`.

    `all`: every permutation. `cyclic`: the rotations of every cycle through the plates that explains all labelled
    experiments. RxRx1's three labelled rotations leave one cycle, hence four arrangements; labelled experiments that are
    all arranged alike leave several cycles.

    Raises:
        InputError: no cycle explains the labelled experiments.
    """
    count = len(groups.plates)
    if permutations == "all":
        return tuple(orders(range(count)))
    completed = [(placed, _complete(placed, groups.plates)) for placed in groups.arrangements.values()]
    known = {full for _, full in completed if full}
    if not known:
        return tuple(orders(range(count)))
    first = min(known)
    partly_known = [placed for placed, full in completed if not full]
    found: set[tuple[int, ...]] = set()
    for rest in orders(range(1, count)):
        ring = (0, *rest)
        rotations = {tuple(first[ring[(ring.index(p) + turn) % count]] for p in range(count)) for turn in range(count)}
        if known <= rotations and all(_agreeing(rotations, placed, groups.plates) for placed in partly_known):
            found |= rotations
    if not found:
        raise InputError(
            "the plates of the labelled experiments are not rotations of one another; set prior.permutations to all"
        )
    return tuple(sorted(found))


def infer_arrangement(
    logits_by_plate: Mapping[str, NDArray[np.floating]],
    groups: PlateGroups,
    permutations: Permutations,
    experiment: str,
    labelled: Mapping[str, int] = MappingProxyType({}),
) -> Arrangement:
    """The arrangement with the largest total assignment score over the experiment's plates.

    The score of a group on a plate is the largest summed log-probability of a one-to-one assignment of its wells within
    the group, without the bias that all wells of the experiment share; it is computed once for each pair of plate and group.

    Args:
        logits_by_plate: treatment logits by plate, at least one plate, each (W, K) and finite. Raw, because a
            temperature fitted on labels would let labels decide which arrangement is accepted.
        groups: the groups learned from labelled plates.
        permutations: the arrangements to choose among.
        experiment: its name, for errors.
        labelled: the groups on plates of the experiment that are known from labels.

    Raises:
        InputError: a plate that the labelled experiments do not have, more wells than any group has perturbations, too few to
            show an arrangement that labels leave open, or labels that no arrangement has.

    Source: the plate restriction of the CellSignal 2nd-place method, here for any group-to-plate permutation.
    """
    wells = sum(map(len, logits_by_plate.values()))
    for plate in logits_by_plate:
        if plate not in groups.plates:
            raise InputError(
                f"experiment {experiment} has a plate {plate}, but labelled experiments have plates "
                f"{', '.join(groups.plates)}; set prior.enabled to false"
            )
    present = [p for p, plate in enumerate(groups.plates) if plate in logits_by_plate]
    numbers = [groups.plates[p] for p in present]
    # On a few plates a bias towards some perturbations would favour their groups; complete experiments have none to remove.
    unbiased_WK = without_bias(np.concatenate([logits_by_plate[number] for number in numbers]))
    ends = np.cumsum([len(logits_by_plate[number]) for number in numbers])[:-1]
    score_PGW = [
        _group_scores(logits_WK, groups, f"experiment {experiment} plate {number}")
        for number, logits_WK in zip(numbers, np.split(unbiased_WK, ends), strict=True)
    ]
    total_PG = [score_GW.sum(axis=1) for score_GW in score_PGW]
    # With plates missing, arrangements that agree on the present ones are one and the same.
    distinct = {
        tuple(held[p] for p in present) for held in _agreeing(candidates(groups, permutations), labelled, groups.plates)
    }
    if not distinct:
        raise InputError(
            f"experiment {experiment}: its labelled plates fit no arrangement; set prior.permutations to all"
        )
    if wells < FEWEST_WELLS and len(distinct) > 1:
        raise InputError(
            f"experiment {experiment} has {wells} treatment well{'s' * (wells > 1)}, too few to tell which plate holds which group"
        )
    total = {
        held: float(sum(total_G[group] for total_G, group in zip(total_PG, held, strict=True))) for held in distinct
    }
    best, *others = sorted(distinct, key=lambda held: (-total[held], held))
    best_score = total[best]
    if best_score == -np.inf:
        raise InputError(
            f"experiment {experiment}: no arrangement of the plate groups has room for all its wells; "
            "set prior.enabled to false"
        )
    margin = separation = float("inf")
    if others and total[others[0]] > -np.inf:
        margin = best_score - total[others[0]]
        lead_W = np.concatenate(
            [score_GW[a] - score_GW[b] for score_GW, a, b in zip(score_PGW, best, others[0], strict=True)]
        )
        # Wells of an assignment are not independent, so the sum varies less than this estimate: it is cautious.
        error = float(np.sqrt(len(lead_W)) * lead_W.std())
        separation = margin / error if error > 0 else float("inf" if margin > 0 else 0)
    return Arrangement(dict(zip(numbers, best, strict=True)), margin, separation)


def infer_arrangements(
    logits_WK: NDArray[np.floating],
    experiments_W: Sequence[str],
    plates_W: Sequence[str],
    groups: PlateGroups,
    permutations: Permutations,
    labelled: Mapping[str, Mapping[str, int]],
) -> dict[str, Arrangement]:
    """The arrangement of every experiment among the wells, in sorted order; see `infer_arrangement`.

    An experiment that fits no arrangement (unknown plate, more wells than a group has perturbations), or has too few wells
    to show one, has a `problem` instead.

    Args:
        logits_WK: logits of the treatment classes, (W, K).
        experiments_W: the experiment of each well.
        plates_W: the plate of each well.
        groups: the groups learned from labelled plates.
        permutations: arrangements to choose from.
        labelled: by experiment the groups on plates that other wells of it, whose labels may be read, already tell.
    """
    found = {}
    experiment_W, plate_W = np.asarray(experiments_W), np.asarray(plates_W)
    for experiment in sorted(set(experiments_W)):
        of_experiment_W = experiment_W == experiment
        by_plate = {
            plate: logits_WK[of_experiment_W & (plate_W == plate)] for plate in set(plate_W[of_experiment_W].tolist())
        }
        try:
            found[experiment] = infer_arrangement(
                by_plate, groups, permutations, experiment, labelled.get(experiment, {})
            )
        except InputError as error:
            found[experiment] = Arrangement({}, math.nan, math.nan, str(error))
    return found


def renumbered(arrangement: Arrangement, learned: PlateGroups, reference: PlateGroups) -> Arrangement:
    """An arrangement of `learned` groups with the numbers of `reference`, the groups that share most perturbations with them."""
    shared_GG = np.array([[len(np.intersect1d(own, other)) for other in reference.members] for own in learned.members])
    number_G = shared_GG.argmax(axis=1)
    return replace(arrangement, groups={plate: int(number_G[group]) for plate, group in arrangement.groups.items()})


def _group_scores(logits_WK: NDArray[np.floating], groups: PlateGroups, label: str) -> NDArray[np.float64]:
    """Each well's log-probability in the best assignment of a plate within each group, nats, (G, W); -inf without room."""
    largest = max(len(classes) for classes in groups.members)
    if len(logits_WK) > largest:
        raise InputError(
            f"{label} has {len(logits_WK)} treatment wells, but no plate group has more than {largest} treatments; "
            "correct its wells, or set prior.enabled to false"
        )
    log_prob_WK = scipy.special.log_softmax(logits_WK.astype(np.float64), axis=1)
    score_GW = np.full((len(groups.members), len(log_prob_WK)), -np.inf)
    for group, classes in enumerate(groups.members):
        if len(log_prob_WK) <= len(classes):
            within_WK = log_prob_WK[:, classes]
            score_GW[group] = within_WK[np.arange(len(within_WK)), assign_plate(within_WK)]
    return score_GW


def _agreeing(
    arrangements: Iterable[tuple[int, ...]], placed: Mapping[str, int], plates: Sequence[str]
) -> list[tuple[int, ...]]:
    """The arrangements that have the placed groups on their plates."""
    return [held for held in arrangements if all(held[plates.index(plate)] == group for plate, group in placed.items())]


def _complete(placed: Mapping[str, int], plates: Iterable[str]) -> tuple[int, ...] | None:
    """An experiment's groups in plate order, a single missing plate filled in; None if more are missing."""
    numbers = list(plates)
    missing = [plate for plate in numbers if plate not in placed]
    if len(missing) > 1:
        return None
    left = set(range(len(numbers))) - set(placed.values())
    return tuple(placed[plate] if plate in placed else min(left) for plate in numbers)
