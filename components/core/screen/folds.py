"""Cross-validation folds of whole experiments, balanced within each cell type. Pure.

Wells of one experiment share its batch effect, so an experiment is never split between training and validation.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from components.core.errors import InputError
from components.core.screen.wells import natural_key


def assign_folds(
    experiments_by_cell_type: Mapping[str, Sequence[str]], count: int, known: Mapping[str, int], seed: int = 0
) -> dict[str, int]:
    """Gives each experiment the fold that validates on it.

    Known experiments keep their fold. The others each go to the fold with the fewest experiments of their cell type, then
    the fewest of all, then the lowest number. They come in natural order of their names with seed 0, so that an experiment
    named after all others changes no fold but its own; other seeds deal them in an order that only seed and name decide.
    With the earlier folds given as `known` no new experiment changes a fold, whatever the seed.

    Args:
        experiments_by_cell_type: the labelled experiments of each cell type, held-out ones left out.
        count: number of folds.
        known: folds from an earlier run; experiments that are not in the screen any more are passed over.
        seed: another one deals the experiments differently.

    Returns:
        Fold by experiment, in natural order of the names.

    Raises:
        InputError: more folds than experiments, a known fold that does not exist, or a fold left without experiments.
    """
    cell_type_of = {name: cell_type for cell_type, names in experiments_by_cell_type.items() for name in names}
    if count > len(cell_type_of):
        raise InputError(
            f"folds.count is {count}, but the screen has {len(cell_type_of)} labelled experiments that are not held "
            f"out; {f'set it to {len(cell_type_of)} or less, or ' if len(cell_type_of) > 1 else ''}add experiments"
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
    """A key that shuffles names: the same whatever other names there are and in whatever order they come."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
