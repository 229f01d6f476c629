"""New plates and the model that predicts them: checks, its plate design, and a manifest in place of the training screen's."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from components.core.config import PackConfig, PriorConfig
from components.core.errors import shortened
from components.core.prior.plate_groups import NoPlateDesignError, PlateGroups, labelled_treatments, learn_groups
from components.core.registry.model_manifest import ModelManifest, TrainedPlate
from components.core.screen.images import list_plate, read_sites
from components.core.screen.layouts import read_new_plates
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate
from components.core.storage.manifest import Manifest, PlateDesign, PlateRecord, ReferenceModel

_PNG = b"\x89PNG\r\n\x1a\n"
_SIZE_AT = 16
"""Offset of width and height in a PNG file."""


def plates_for(
    model: ModelManifest,
    source: ScreenSource,
    experiments: Sequence[str],
    any_cell_type: bool,
    source_name: str = "screen",
) -> tuple[Plate, ...]:
    """The plates of some experiments (empty: of all) from the tables; no label is read.

    Raises:
        InputError: as read_new_plates, or a cell type that the model does not know; names the screen as `source_name`.
    """
    plates = read_new_plates(source, experiments)
    model.check_cell_types({plate.cell_type for plate in plates}, source_name, any_cell_type)
    return plates


def check_first_image(
    model: ModelManifest, source: ScreenSource, plates: Sequence[Plate], sites: int, source_name: str = "screen"
) -> None:
    """Refuses images of another size before all of them are listed; packing checks each image.

    Args:
        model: the model that predicts.
        source: the screen.
        plates: its plates; at least one.
        sites: largest number of sites per well.
        source_name: what errors call the screen.

    Raises:
        InputError: the first image cannot be read, or has another size than those that the model was trained with.
    """
    files = list_plate(source, plates[0], sites)
    image = read_sites(source, files.folder, files.sites[:1])[0][0]
    if image.startswith(_PNG) and len(image) >= _SIZE_AT + 8:
        width, height = struct.unpack_from(">II", image, _SIZE_AT)
        if width == height:  # otherwise packing reports what is wrong with the file
            model.check_images(width, source_name)


def seen_before(model: ModelManifest, plates: Sequence[Plate]) -> list[str]:
    """Warnings about plates whose experiment has the name of one that the networks were trained on."""
    labelled = "these predictions do not show how well it classifies new plates"
    unlabelled = "these are not predictions of plates that it never saw"
    messages = []
    for names, how, consequence in (
        (model.learned_from, "learned the labels of", labelled),
        (model.unlabelled, "was trained on images of", unlabelled),
    ):
        found = list(dict.fromkeys(plate.experiment for plate in plates if plate.experiment in names))
        if found:
            messages.append(f"the model {how} {shortened(found)}; if it is the same experiment, {consequence}")
    return messages


def design_of(screen: Manifest, prior: PriorConfig) -> PlateDesign | None:
    """The plate design of a screen's labelled plates; None if they have none, or the prior is off.

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
    """A model's plate design with class indices instead of labels; `treatments` are in class order."""
    index = {label: k for k, label in enumerate(treatments)}
    members = tuple(np.array(sorted(index[label] for label in group), dtype=np.intp) for group in design.groups)
    return PlateGroups(design.plates, members, design.arrangements)


def reference_of(
    model: ModelManifest, plates: Sequence[TrainedPlate], address: str, store: str, codec: PackConfig, run: str = ""
) -> Manifest:
    """A manifest in place of the training screen's: vocabulary, pixel histograms and plate design, and no wells.

    So the prediction of new plates reads no label and no image of a training well.

    Args:
        model: the model that predicts.
        plates: the plates that its networks were trained on.
        address: the model's address.
        store: address of the store that receives the new plates.
        codec: how they are packed.
        run: key of the run that packs them; may be empty.
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
