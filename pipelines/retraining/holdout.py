"""Which held-out experiments can tell a challenger from the champion: those that neither ever saw, of cell types that both know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from components.core.errors import InputError
from components.core.registry.model_manifest import ModelManifest
from components.core.screen.wells import Plate


@dataclass(frozen=True)
class Comparable:
    """What two models can be compared on.

    Attributes:
        experiments: in the order of the configuration.
        remarks: why others are left out, a sentence each.
    """

    experiments: tuple[str, ...]
    remarks: tuple[str, ...]


def saw(model: ModelManifest) -> frozenset[str]:
    """Experiments that had a part in a model, by labels or by images."""
    return model.learned_from | {*model.unlabelled}


def comparable(holdout: Iterable[tuple[str, str]], models: Iterable[tuple[str, ModelManifest]]) -> Comparable:
    """The experiments that no model saw and all can name.

    Args:
        holdout: experiments that are held out, with their cell types.
        models: with what they are called, for the remarks.
    """
    known = [(called, model, saw(model)) for called, model in models]
    kept, remarks = [], []
    for experiment, cell_type in holdout:
        why = next(
            (
                f"{called} {model.short} {'was trained with it' if experiment in seen else f'does not know {cell_type}'}"
                for called, model, seen in known
                if experiment in seen or cell_type not in model.folds
            ),
            "",
        )
        if why:
            remarks.append(f"{experiment} is left out: {why}")
        else:
            kept.append(experiment)
    return Comparable(tuple(kept), tuple(remarks))


def check_plates(plates: Collection[Plate], champion: ModelManifest) -> None:
    """Refuses held-out plates that would refuse every challenger, however good, before one is trained.

    Args:
        plates: of the experiments that are compared on; at least one.
        champion: that is compared with.

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
            f"screen.holdout_experiments: champion {champion.short} knows none of their siRNAs (it knows "
            f"{champion.vocabulary.treatments[0]}, and so on); give labels in the encoding of its screen, or a screen of another "
            "library its own store.prefix"
        )
