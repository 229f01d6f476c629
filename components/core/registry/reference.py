"""What a model keeps of its training screen for predicting new plates: the plate design, and a manifest without wells. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.core.config import PackConfig, PriorConfig
from components.core.prior.plate_groups import NoPlateDesignError, PlateGroups, labelled_treatments, learn_groups
from components.core.registry.model_manifest import ModelManifest, TrainedPlate
from components.core.storage.manifest import Manifest, PlateDesign, PlateRecord, ReferenceModel


def design_of(screen: Manifest, prior: PriorConfig) -> PlateDesign | None:
    """The design that a screen's labelled plates show, with labels; None if they show none, or the prior is off.

    Raises:
        InputError: a design with a mistake in it.
    """
    if not prior.enabled:
        return None
    treatments = screen.vocabulary.treatments
    try:
        groups = learn_groups(labelled_treatments(screen.plates), treatments)
    except NoPlateDesignError:
        return None
    return PlateDesign(
        plates=groups.plates,
        groups=tuple(tuple(treatments[k] for k in members) for members in groups.members),
        arrangements={experiment: dict(held) for experiment, held in groups.arrangements.items()},
    )


def groups_of(design: PlateDesign, treatments: Sequence[str]) -> PlateGroups:
    """A model's design with class indices, as core.prior takes it.

    Args:
        design: the model's.
        treatments: its vocabulary's, in class order.
    """
    index = {label: k for k, label in enumerate(treatments)}
    members = tuple(np.array(sorted(index[label] for label in group), dtype=np.intp) for group in design.groups)
    return PlateGroups(design.plates, members, design.arrangements)


def reference_of(
    model: ModelManifest, plates: Sequence[TrainedPlate], address: str, store: str, codec: PackConfig, run: str = ""
) -> Manifest:
    """A manifest in place of the training screen's: its vocabulary and histograms, and what assign needs of its labels.

    So predicting new plates needs no label and no image of a training well.

    Args:
        model: the model that predicts.
        plates: those that its networks saw.
        address: the model's address.
        store: address of the store that new plates go to.
        codec: how they are packed.
        run: key of the run that packs them, under which finished folds are listed; may be empty.
    """
    return Manifest(
        store=store,
        channels=model.channels,
        image_size=model.image_size,
        codec=codec,
        vocabulary=model.vocabulary,
        folds={},
        plates=tuple(PlateRecord(**plate.model_dump(), prefix="", wells=()) for plate in plates),
        run=run,
        model=ReferenceModel(
            fingerprint=model.fingerprint, address=address, design=model.design, temperatures=model.temperatures
        ),
    )
