"""Which held-out experiments can tell a challenger from the champion: those that neither ever saw, of cell types that both know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from components.core.registry.model_manifest import ModelManifest


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
    """Experiments that had a part in a model: by labels, those of the runs that it started from included, or by images.

    Where not all folds were trained, what the others validate on taught no network, but selected checkpoints, fitted
    temperatures, and is in the plate design.
    """
    of_wells = {id_code.rsplit("_", 2)[0] for id_code in model.taught.wells}
    return frozenset({*model.taught.experiments, *of_wells, *model.experiment_folds, *model.unlabelled})


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
