"""Cross-validation folds: whole experiments or whole plates balanced within each cell type, or single wells at random. Pure.

Wells of one experiment share its batch effect, so `assign_folds` never splits an experiment between training and validation.
Folds of plates or wells are for a screen with a single experiment, and for the evaluation protocol that holds out wells ("Random"
beside the organisers' "Batch"): their accuracy measures how well phenotypes can be told apart within an experiment, not how that
transfers to a new one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from components.core.config import FoldsConfig
from components.core.errors import InputError, shortened
from components.core.screen.wells import Plate, experiments_by_cell_type, natural_key
from components.core.storage.manifest import PlateRecord

Split = Literal["experiment", "plate", "well"]
"""What a fold holds out."""

HELD_OUT_BY_NONE = 1
"""Fold of all experiments if there is a single fold, 0, which learns their labels as those of any other fold. In general the number
of folds, for an experiment that none of them holds out."""

MOST_UNSEEN = 0.05
"""Share of the labelled wells whose label only one fold's plates hold, up to which folds of a single experiment hold out plates."""


def screen_folds(
    plates: Sequence[Plate | PlateRecord], config: FoldsConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Folds by experiment, see `experiment_folds`, and fold by id_code, one of them empty, as `chosen_split` says.

    Args:
        plates: labelled plates that are not held out, from a screen's tables or its manifest.
        config: number and kind of folds.

    Raises:
        InputError: too few labelled experiments, plates or wells for the folds, or listed experiments that are not there.
    """
    split = chosen_split(plates, config)
    if split == "experiment":
        return experiment_folds(experiments_by_cell_type(plates), config), {}
    deal = deal_wells if split == "well" else deal_plates
    return {}, deal(dealt_wells(plates), config.count, config.seed)


def chosen_split(plates: Sequence[Plate | PlateRecord], config: FoldsConfig) -> Split:
    """What a fold holds out: as configured, but plates or wells if there is a single experiment, which no fold can hold out.

    Then a fold holds out plates, unless there are fewer of them than folds, or many labels are on the plates of one fold alone.
    """
    if config.count == 1:
        return "experiment"
    if (
        config.split != "experiment"
        or config.known
        or config.validation
        or len({plate.experiment for plate in plates}) != 1
    ):
        return config.split
    wells = dealt_wells(plates)
    if len({well.plate for well in wells}) < config.count:
        return "well"
    unseen = unseen_labels(wells, deal_plates(wells, config.count, config.seed))
    share = sum(well.perturbation in unseen for well in wells) / len(wells)
    return "plate" if share <= MOST_UNSEEN else "well"


def split_remarks(plates: Sequence[Plate | PlateRecord], config: FoldsConfig) -> list[str]:
    """What a user should know of the folds: that they are not as configured, and labels that a fold holds out all wells of."""
    split, remarks = chosen_split(plates, config), []
    if split != config.split and config.count > 1:
        remarks.append(
            f"the screen has one labelled experiment that is not held out, {plates[0].experiment}: folds hold out {split}s "
            f"(folds.split {split}), so that scores do not tell of new experiments"
        )
    if split == "plate":
        wells = dealt_wells(plates)
        unseen = sorted(unseen_labels(wells, deal_plates(wells, config.count, config.seed)), key=natural_key)
        if unseen:
            remarks.append(
                f"all wells of {len(unseen)} labels are in one fold's plates, which its networks never learn: "
                f"{shortened(unseen)}; folds.split well avoids that"
            )
    return remarks


def unseen_labels(wells: Iterable[DealtWell], fold_of: Mapping[str, int]) -> set[str]:
    """The labels of which one fold holds out all wells of a cell type."""
    folds: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for well in wells:
        folds[well.cell_type, well.perturbation].add(fold_of[well.id_code])
    return {label for (_, label), own in folds.items() if len(own) == 1}


def experiment_folds(
    experiments_by_cell_type: Mapping[str, Sequence[str]], config: FoldsConfig
) -> dict[str, tuple[int, ...]]:
    """The folds that validate on each experiment, ascending: one dealt fold, or those that list it.

    An experiment that no fold holds out has the number of folds in their place.

    Raises:
        InputError: as `assign_folds`, or a listed experiment is no labelled one that is not held out.
    """
    if config.validation is None:
        dealt = assign_folds(experiments_by_cell_type, config.count, config.known, config.seed)
        return {name: (fold,) for name, fold in dealt.items()}
    present = sorted((name for names in experiments_by_cell_type.values() for name in names), key=natural_key)
    unknown = sorted({name for names in config.validation for name in names} - set(present), key=natural_key)
    if unknown:
        raise InputError(
            f"folds.validation: no labelled experiment that is not held out is named {shortened(unknown)}; there "
            f"{'is' if len(present) == 1 else 'are'} {shortened(present)}; correct the lists, or set folds.validation to null"
        )
    listed = {name: tuple(f for f, names in enumerate(config.validation) if name in names) for name in present}
    return {name: folds or (config.count,) for name, folds in listed.items()}


def assign_folds(
    experiments_by_cell_type: Mapping[str, Sequence[str]], count: int, known: Mapping[str, int], seed: int = 0
) -> dict[str, int]:
    """Gives each experiment the fold that validates on it.

    A single fold validates on none and learns the labels of all. Known experiments keep their fold. The others each go to the
    fold with the fewest experiments of their cell type, then the fewest of all, then the lowest number. With seed 0 they are
    dealt in natural order of their names, so that a new experiment that sorts last changes no earlier fold; with other seeds in
    an order that depends on seed and name alone. If the earlier folds are `known`, no new experiment changes one, whatever the
    seed.

    Args:
        experiments_by_cell_type: the labelled experiments of each cell type, held-out ones left out.
        count: number of folds.
        known: folds from an earlier run; experiments that have left the screen are ignored.
        seed: order in which experiments are dealt.

    Returns:
        Fold by experiment, in natural order of the names.

    Raises:
        InputError: more folds than experiments, a known fold that does not exist, or a fold left without experiments.
    """
    cell_type_of = {name: cell_type for cell_type, names in experiments_by_cell_type.items() for name in names}
    if count == 1:
        return dict.fromkeys(sorted(cell_type_of, key=natural_key), HELD_OUT_BY_NONE)
    if count > (found := len(cell_type_of)):
        experiments = "experiment that is" if found == 1 else "experiments that are"
        raise InputError(
            f"folds.count is {count}, but the screen has {found} labelled {experiments} not held out; "
            f"{f'set it to {found} or less, ' if found > 1 else ''}set folds.split to plate or well, or add experiments"
        )
    folds: dict[str, int] = {}
    for name, fold in known.items():
        if name in cell_type_of:
            if not 0 <= fold < count:
                raise InputError(
                    f"folds.known: {name} has fold {fold}, but folds.count is {count}; expected 0-{count - 1}"
                )
            folds[name] = fold
    of_type = Counter((cell_type_of[name], fold) for name, fold in folds.items())
    overall = Counter(folds.values())
    natural = sorted(cell_type_of, key=natural_key)
    for name in sorted(natural, key=lambda name: hashed(seed, name)) if seed else natural:
        if name in folds:
            continue
        cell_type = cell_type_of[name]
        fold = min((of_type[cell_type, f], overall[f], f) for f in range(count))[-1]
        folds[name] = fold
        of_type[cell_type, fold] += 1
        overall[fold] += 1
    for fold in range(count):
        if not overall[fold]:
            raise InputError(
                f"folds.known leaves fold {fold} without experiments; lower folds.count or shorten folds.known"
            )
    return {name: folds[name] for name in natural}


def hashed(seed: int, name: str) -> bytes:
    """A sorting key that shuffles names and depends on nothing but seed and name."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


class DealtWell(NamedTuple):
    """A labelled treatment well that is not held out."""

    id_code: str
    experiment: str
    plate: str
    cell_type: str
    perturbation: str


def dealt_wells(plates: Iterable[Plate | PlateRecord]) -> list[DealtWell]:
    """The labelled treatment wells of plates."""
    return [
        DealtWell(well.id_code, plate.experiment, plate.plate, plate.cell_type, well.perturbation)
        for plate in plates
        for well in plate.wells
        if well.role == "treatment" and well.perturbation is not None
    ]


def deal_plates(wells: Iterable[DealtWell], count: int, seed: int) -> dict[str, int]:
    """Gives all wells of a plate the fold that holds it out; plates are dealt as `assign_folds` deals experiments.

    Returns:
        Fold by id_code.

    Raises:
        InputError: more folds than plates.
    """
    wells = list(wells)
    plates_of: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for well in wells:
        plates_of[well.cell_type][f"{well.experiment}_{well.plate}"] = None
    found = sum(map(len, plates_of.values()))
    if count > found:
        raise InputError(
            f"folds.count is {count}, but the screen has {found} labelled plates that are not held out; "
            f"{f'set it to {found} or less, ' if found > 1 else ''}set folds.split to well, or add plates"
        )
    fold_of = assign_folds({cell_type: list(names) for cell_type, names in plates_of.items()}, count, {}, seed)
    return {well.id_code: fold_of[f"{well.experiment}_{well.plate}"] for well in wells}


def deal_wells(wells: Iterable[DealtWell], count: int, seed: int) -> dict[str, int]:
    """Gives each well the fold that holds it out, at random but evenly.

    The folds' shares of an experiment differ by at most one well, and so do their shares of a perturbation's wells within a cell
    type: a perturbation with no more wells than folds is never held out twice by the same fold. Plates are even to two wells.
    The order of the wells does not matter.

    Returns:
        Fold by id_code.

    Raises:
        InputError: a fold would stay empty.

    Source: experiments and perturbations are the two sides of a bipartite graph, wells its edges; cut into pieces of at most
    `count` wells, both sides are even when no piece meets a fold twice, which is an edge colouring (König 1916).
    """
    shuffled = sorted(wells, key=lambda well: (hashed(seed, well.id_code), well.id_code))
    # An experiment's wells plate by plate, so that each piece but a plate's last is of one plate.
    rows = _pieces([(well.experiment,) for well in shuffled], [natural_key(well.plate) for well in shuffled], count)
    columns = _pieces([(well.cell_type, well.perturbation) for well in shuffled], [() for _ in shuffled], count)
    preferred = [hashed(seed, f"fold of {well.id_code}")[0] % count for well in shuffled]
    folds = _colour_edges(list(zip(rows, columns, strict=True)), count, preferred)
    if set(folds) != set(range(count)):
        raise InputError(
            f"folds.count is {count}, but the screen has only {len(shuffled)} labelled treatment wells that are not held "
            "out, too few for every fold to hold out one; lower folds.count, or add experiments"
        )
    fold_of = {well.id_code: fold for well, fold in zip(shuffled, folds, strict=True)}
    return {id_code: fold_of[id_code] for id_code in sorted(fold_of, key=natural_key)}


def _pieces(owners: Sequence[tuple[str, ...]], order: Sequence[tuple[object, ...]], size: int) -> list[Hashable]:
    """For each well its owner and the number of the piece it falls into, pieces of `size` filled in the given order."""
    seen: defaultdict[tuple[str, ...], int] = defaultdict(int)
    pieces: list[Hashable] = [None] * len(owners)
    for n in sorted(range(len(owners)), key=lambda n: order[n]):
        pieces[n] = (owners[n], seen[owners[n]] // size)
        seen[owners[n]] += 1
    return pieces


def _colour_edges(edges: Sequence[tuple[Hashable, Hashable]], colours: int, preferred: Sequence[int]) -> list[int]:
    """Colours the edges of a bipartite multigraph of maximum degree `colours` so that no two of a colour meet.

    Edge by edge; if its ends have no free colour in common, the path of two alternating colours from one end swaps
    them, which frees one.
    """
    colour = [-1] * len(edges)
    at: defaultdict[tuple[int, Hashable], dict[int, int]] = defaultdict(dict)  # by side and vertex: edge by colour
    for edge, ends in enumerate(edges):
        row, column = at[0, ends[0]], at[1, ends[1]]
        turned = [(preferred[edge] + k) % colours for k in range(colours)]
        chosen = next((c for c in turned if c not in row and c not in column), None)
        if chosen is None:
            chosen = next(c for c in turned if c not in row)
            other = next(c for c in turned if c not in column)
            # The path cannot come back to the row: it would arrive there in `chosen`, which the row lacks.
            path, side, have = [], 1, chosen
            following = column.get(have)
            while following is not None:
                path.append(following)
                side = 1 - side
                have = other if have == chosen else chosen
                following = at[side, edges[following][side]].get(have)
            for step in path:
                for end in (0, 1):
                    del at[end, edges[step][end]][colour[step]]
            for step in path:
                colour[step] = other if colour[step] == chosen else chosen
                for end in (0, 1):
                    at[end, edges[step][end]][colour[step]] = step
        colour[edge] = chosen
        row[chosen] = column[chosen] = edge
    return colour
