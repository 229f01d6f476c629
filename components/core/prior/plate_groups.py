"""Plate groups: which siRNAs share a plate, learned from labelled plates. Pure NumPy; no file is read here.

N labelled plates, K treatment siRNAs, G groups. A design has as many groups as an experiment has plates: each plate of
an experiment holds one group, and experiments differ in which plate holds which.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from components.core.errors import InputError
from components.core.screen.wells import Plate
from components.core.storage.manifest import PlateRecord

# Two plates hold the same group when they share more than half of the smaller one's siRNAs: plates of one group differ
# by a few missing wells, plates of two groups share nothing, and both stay far from one half.
SAME_GROUP_OVERLAP = 0.5
# Up to this share of wells outside their siRNA's group is a labelling mistake to report; more is no plate design.
MOST_STRAYS = 0.05


class LabelledWell(NamedTuple):
    """One labelled treatment well."""

    experiment: str
    plate: int
    sirna: str


class NoPlateDesignError(InputError):
    """The labelled plates show no groups, so the prior does not apply; callers may go on without it and say so."""


@dataclass(frozen=True)
class PlateGroups:
    """The partition of the treatments into plate groups, and where the labelled experiments hold them.

    Groups have no names of their own: group g is the one on the g-th plate of the first labelled experiment.
    """

    plates: tuple[int, ...]
    """plate numbers of the design, ascending"""
    members: tuple[NDArray[np.intp], ...]
    """treatment class indices of each group, ascending"""
    arrangements: Mapping[str, Mapping[int, int]]
    """for each labelled experiment the group on each of its plates"""

    @property
    def treatments(self) -> int:
        """Number of treatment siRNAs, K."""
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
    """The labelled treatment wells of plates, as a manifest or the tables describe them.

    Args:
        plates: packed or not; those whose labels may be read.
        experiments: the experiments whose labels may be read (a fold's training experiments); None for all labelled.
    """
    return [
        LabelledWell(plate.experiment, plate.plate, well.sirna)
        for plate in plates
        if plate.labelled and (experiments is None or plate.experiment in experiments)
        for well in plate.wells
        if well.well_type == "treatment" and well.sirna is not None
    ]


def learn_groups(wells: Iterable[LabelledWell], treatments: Sequence[str]) -> PlateGroups:
    """Learns the plate groups from labelled treatment wells; tolerates missing wells and missing plates.

    Args:
        wells: labelled treatment wells.
        treatments: the treatment labels in class order, K of them.

    Raises:
        NoPlateDesignError: the layout has no groups: no labelled wells, siRNAs repeated on a plate, plates of one
            experiment that share their siRNAs, or siRNAs scattered over plates.
        InputError: a design with a mistake in it: a siRNA in two groups, a number of groups that is not the number of
            plates, a label that is no treatment, or a siRNA on no labelled plate whose group cannot be inferred.
    """
    index = {label: k for k, label in enumerate(treatments)}
    wells = list(wells)
    rows = sorted({(well.experiment, well.plate) for well in wells})
    if not rows:
        raise NoPlateDesignError("no labelled treatment wells to learn plate groups from; set prior.enabled to false")
    row = {key: n for n, key in enumerate(rows)}
    holds_NK = np.zeros((len(rows), len(treatments)), dtype=bool)
    for experiment, plate, sirna in wells:
        if sirna not in index:
            raise InputError(
                f"experiment {experiment} plate {plate}: {sirna} is not a treatment siRNA; correct its label"
            )
        n, k = row[experiment, plate], index[sirna]
        if holds_NK[n, k]:
            raise NoPlateDesignError(
                f"experiment {experiment} plate {plate}: {sirna} is on the plate twice; "
                "correct its label, or set prior.enabled to false"
            )
        holds_NK[n, k] = True

    group_N = _cluster(holds_NK)
    groups = int(group_N.max()) + 1
    home_K = _home(holds_NK, group_N, groups)
    _refuse_strays(holds_NK, group_N, home_K, rows, treatments)
    arrangements = _arrange(group_N, rows)
    plates = tuple(sorted({plate for _, plate in rows}))
    if groups != len(plates):
        odd = rows[int(np.flatnonzero(group_N == np.bincount(group_N).argmin())[0])]
        raise InputError(
            f"the labelled plates hold {groups} groups of siRNAs but experiments have {len(plates)} plates; "
            f"experiment {odd[0]} plate {odd[1]} fits no group: correct it, or set prior.enabled to false"
        )
    home_K = _infer_unseen(home_K, groups, treatments)
    members = tuple(np.flatnonzero(home_K == group) for group in range(groups))
    return PlateGroups(plates, members, arrangements)


def _cluster(holds_NK: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The group of each plate, numbered by first appearance, shape (N,)."""
    size_N = holds_NK.sum(axis=1)
    shared_NN = holds_NK.astype(np.float64) @ holds_NK.T.astype(np.float64)
    same_NN = shared_NN > SAME_GROUP_OVERLAP * np.minimum(size_N[:, None], size_N[None, :])
    _, group_N = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_array(same_NN), directed=False)
    _, first, inverse = np.unique(group_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.intp)


def _home(holds_NK: NDArray[np.bool_], group_N: NDArray[np.intp], groups: int) -> NDArray[np.intp]:
    """The group on whose plates each siRNA is seen most often, -1 where it is on no plate, shape (K,)."""
    votes_GK = np.stack([holds_NK[group_N == group].sum(axis=0) for group in range(groups)])
    return np.where(votes_GK.any(axis=0), votes_GK.argmax(axis=0), -1).astype(np.intp)


def _refuse_strays(
    holds_NK: NDArray[np.bool_],
    group_N: NDArray[np.intp],
    home_K: NDArray[np.intp],
    rows: Sequence[tuple[str, int]],
    treatments: Sequence[str],
) -> None:
    stray_NK = holds_NK & (group_N[:, None] != home_K[None, :])
    if stray_NK.sum() > MOST_STRAYS * holds_NK.sum():
        raise NoPlateDesignError(
            f"{stray_NK.sum()} of {holds_NK.sum()} labelled wells are outside their siRNA's plate group: "
            "this screen has no plate groups; set prior.enabled to false"
        )
    if stray_NK.any():
        n, k = (int(i[0]) for i in np.nonzero(stray_NK))
        experiment, plate = rows[n]
        other = rows[int(np.flatnonzero(holds_NK[:, k] & (group_N == home_K[k]))[0])]
        raise InputError(
            f"experiment {experiment} plate {plate}: {treatments[k]} is in two plate groups, here and on "
            f"experiment {other[0]} plate {other[1]}; correct the wrong label, or set prior.enabled to false"
        )


def _arrange(group_N: NDArray[np.intp], rows: Sequence[tuple[str, int]]) -> dict[str, dict[int, int]]:
    arrangements: dict[str, dict[int, int]] = {}
    for (experiment, plate), group in zip(rows, group_N.tolist(), strict=True):
        placed = arrangements.setdefault(experiment, {})
        twin = next((number for number, held in placed.items() if held == group), None)
        if twin is not None:
            raise NoPlateDesignError(
                f"experiment {experiment}: plates {twin} and {plate} hold the same siRNAs, so this "
                "screen has no plate groups; set prior.enabled to false"
            )
        placed[plate] = group
    return arrangements


def _infer_unseen(home_K: NDArray[np.intp], groups: int, treatments: Sequence[str]) -> NDArray[np.intp]:
    """Puts siRNAs that are on no labelled plate where only one group of an even design has room for them."""
    unseen = np.flatnonzero(home_K < 0)
    if len(unseen) == 0:
        return home_K
    room_G = len(treatments) / groups - np.bincount(home_K[home_K >= 0], minlength=groups)
    short = np.flatnonzero(room_G != 0)
    if len(short) != 1:
        raise InputError(
            f"{treatments[unseen[0]]} is on no labelled plate, so its plate group is not known ({len(unseen)} such "
            "siRNAs); add an experiment that holds it, or set prior.enabled to false"
        )
    return np.where(home_K < 0, short[0], home_K).astype(np.intp)
