"""Folds of single wells dealt at random, for the evaluation protocol that holds out wells instead of experiments. Pure.

Held-out wells share experiments and plates with training wells, so that their accuracy says how well phenotypes are told
apart, and nothing of how that carries over to a new experiment (the organisers' "Random" beside "Batch").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from components.core.errors import InputError
from components.core.screen.folds import hashed
from components.core.screen.wells import Screen, natural_key


class DealtWell(NamedTuple):
    """A labelled treatment well that is not held out."""

    id_code: str
    experiment: str
    plate: int
    cell_type: str
    sirna: str


def dealt_wells(screen: Screen) -> list[DealtWell]:
    """The wells that take part: treatments of labelled experiments, held-out experiments left out."""
    return [
        DealtWell(well.id_code, plate.experiment, plate.plate, plate.cell_type, well.sirna)
        for plate in screen.plates
        if plate.labelled and not plate.holdout
        for well in plate.wells
        if well.well_type == "treatment" and well.sirna is not None
    ]


def deal_wells(wells: Iterable[DealtWell], count: int, seed: int) -> dict[str, int]:
    """Gives each well the fold that holds it out, at random but evenly.

    The folds' shares of an experiment differ by at most one well, and so do their shares of a siRNA's wells within a cell
    type: a siRNA with no more wells than folds is never held out twice by the same fold. Plates are even to two wells.
    Only seed and wells decide, not the wells' order.

    Args:
        wells: labelled treatment wells.
        count: number of folds.
        seed: another one deals the wells differently.

    Returns:
        Fold by id_code.

    Raises:
        InputError: a fold would stay empty.

    Source: experiments and siRNAs are the two sides of a bipartite graph, wells its edges; cut into pieces of at most
    `count` wells, both sides are even when no piece meets a fold twice, which is an edge colouring (König 1916).
    """
    shuffled = sorted(wells, key=lambda well: (hashed(seed, well.id_code), well.id_code))
    # An experiment's wells plate by plate, so that each piece but a plate's last is of one plate.
    rows = _pieces([(well.experiment,) for well in shuffled], [(well.plate,) for well in shuffled], count)
    columns = _pieces([(well.cell_type, well.sirna) for well in shuffled], [() for _ in shuffled], count)
    preferred = [hashed(seed, f"fold of {well.id_code}")[0] % count for well in shuffled]
    folds = _colour_edges(list(zip(rows, columns, strict=True)), count, preferred)
    if set(folds) != set(range(count)):
        raise InputError(
            f"folds.count is {count}, but the screen has only {len(shuffled)} labelled treatment wells that are not held "
            "out, too few for every fold to hold out one; lower folds.count, or add experiments"
        )
    fold_of = {well.id_code: fold for well, fold in zip(shuffled, folds, strict=True)}
    return {id_code: fold_of[id_code] for id_code in sorted(fold_of, key=natural_key)}


def _pieces(owners: Sequence[tuple[str, ...]], order: Sequence[tuple[int, ...]], size: int) -> list[Hashable]:
    """For each well its owner and the piece of the owner it falls into, pieces of `size` filled in the given order."""
    seen: defaultdict[tuple[str, ...], int] = defaultdict(int)
    pieces: list[Hashable] = [None] * len(owners)
    for n in sorted(range(len(owners)), key=lambda n: order[n]):
        pieces[n] = (owners[n], seen[owners[n]] // size)
        seen[owners[n]] += 1
    return pieces


def _colour_edges(edges: Sequence[tuple[Hashable, Hashable]], colours: int, preferred: Sequence[int]) -> list[int]:
    """Colours the edges of a bipartite multigraph of maximum degree `colours` so that none meet at a vertex in one colour.

    Edge by edge; where its ends have no free colour in common, the path of two alternating colours from one end changes
    them over, which frees one.
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
