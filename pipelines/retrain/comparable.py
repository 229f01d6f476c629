"""Which held-out experiments a challenger and the champion can be compared on.

Only those count that neither model was trained on, by labels, images or under another name, and whose cell type both know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest, TrainedPlate
from components.core.screen.wells import Plate
from components.core.storage.manifest import Manifest


class Comparable(NamedTuple):
    """The held-out experiments that models can be compared on, in the configuration's order, and why others are left out."""

    experiments: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def comparable(
    holdout: Iterable[tuple[str, str]], champion: ModelManifest, challenger: ModelManifest | None = None
) -> Comparable:
    """The held-out experiments that neither model saw, of cell types that both know.

    Args:
        holdout: held-out experiments, with their cell types.
        champion: the champion.
        challenger: None before it is trained.
    """
    models = [("champion", champion)] + ([("challenger", challenger)] if challenger is not None else [])
    known = [(label, model, model.learned_from | {*model.unlabelled}) for label, model in models]
    kept, remarks = [], []
    for experiment, cell_type in holdout:
        for label, model, seen in known:
            if experiment in seen or cell_type not in model.folds:
                why = "was trained with it" if experiment in seen else f"does not know {cell_type}"
                remarks.append(f"{experiment} is left out: the {label} {model.short} {why}")
                break
        else:
            kept.append(experiment)
    return Comparable(tuple(kept), tuple(remarks))


def without_twins(found: Comparable, plates: Manifest, trained: Iterable[TrainedPlate], label: str) -> Comparable:
    """Leaves out experiments that a model was trained on under another name: a plate has exactly the same pixel counts.

    Args:
        found: experiments that can be compared by their names.
        plates: manifest of the held-out plates.
        trained: the plates that the model was trained on.
        label: what remarks call the model.
    """
    known = {plate.histograms: plate.experiment for plate in trained}
    twins = {plate.experiment: known[plate.histograms] for plate in plates.plates if plate.histograms in known}
    kept = tuple(name for name in found.experiments if name not in twins)
    more = tuple(
        f"{name} is left out: {label} was trained on the same images as {twins[name]}"
        for name in found.experiments
        if name in twins
    )
    return Comparable(kept, (*found.remarks, *more))


def check_plates(plates: Collection[Plate], champion: ModelManifest) -> None:
    """Rejects held-out plates on which no challenger could be promoted, before one is trained.

    Args:
        plates: the plates of the experiments that are compared on; at least one.
        champion: the champion.

    Raises:
        InputError: a cell type has a single plate, or the champion knows none of the siRNAs.
    """
    single = [name for name, count in Counter(plate.cell_type for plate in plates).items() if count == 1]
    if single:
        raise InputError(
            f"screen.holdout_experiments: {' and '.join(single)} would have a single held-out plate, which does not show how "
            "plates differ; hold out two or more, or none"
        )
    labels = {well.sirna for plate in plates for well in plate.wells if well.well_type == "treatment"} - {None}
    if labels.isdisjoint(champion.vocabulary.treatments):
        raise InputError(
            f"screen.holdout_experiments: champion {champion.short} knows none of their siRNAs (it knows, for example, "
            f"{champion.vocabulary.treatments[0]}); give labels in the encoding of its screen, or a screen of another library its "
            "own store.prefix"
        )
