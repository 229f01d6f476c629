"""The prior that goes with a model: plate groups by label instead of class index, and back. Pure; the method is core.prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.core.config import PriorConfig
from components.core.prior.plate_groups import NoPlateDesignError, PlateGroups, labelled_treatments, learn_groups
from components.core.storage.manifest import Manifest, PlateDesign


def design_of(screen: Manifest, prior: PriorConfig) -> PlateDesign | None:
    """What the labelled plates of a screen say; None where they show no design, or the prior is off.

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
    """The same as core.prior takes it.

    Args:
        design: of a model.
        treatments: of its vocabulary, in class order.
    """
    index = {label: k for k, label in enumerate(treatments)}
    members = tuple(np.array(sorted(index[label] for label in group), dtype=np.intp) for group in design.groups)
    return PlateGroups(design.plates, members, design.arrangements)
