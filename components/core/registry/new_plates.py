"""New plates and the model that predicts them: checks, its plate design, and a manifest in place of the training screen's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from components.core.config import PriorConfig, ScreenConfig
from components.core.errors import InputError, shortened
from components.core.prior.plate_groups import NoPlateDesignError, PlateGroups, labelled_treatments, learn_groups
from components.core.registry.model_manifest import ModelManifest
from components.core.screen.images import image_form
from components.core.screen.layouts import read_new_plates
from components.core.screen.plane_header import pixels
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate, Screen
from components.core.storage.manifest import Manifest, PlateDesign, PlateRecord, ReferenceModel


def plates_for(
    model: ModelManifest,
    source: ScreenSource,
    experiments: Sequence[str],
    any_cell_type: bool,
    form: ScreenConfig | None = None,
) -> Screen:
    """The plates of some experiments (empty: of all) from tables in a `form`, with the model's vocabulary; no label is read.

    With `any_cell_type`, networks that learned all of the model's cell types may classify other ones.
    InputError as read_new_plates, and for a cell type without networks.
    """
    screen = replace(read_new_plates(source, experiments, form), vocabulary=model.vocabulary)
    unknown = sorted({plate.cell_type for plate in screen.plates} - model.folds.keys())
    if not unknown:
        return screen
    lead = f"{source.address()}: cell type {unknown[0]}, but model {model.short} knows only {', '.join(model.folds)}"
    if not model.folds_of(unknown[0]):
        each = ", with networks for each of them but none for all" if any_cell_type else ""
        raise InputError(f"{lead}{each}; leave its experiments out, or train a model with them")
    if model.run_config().head.cell_types:
        raise InputError(
            f"{lead}, which its networks take as input (head.cell_types); leave its experiments out, or train a model with them"
        )
    if not any_cell_type:
        raise InputError(
            f"{lead}; leave its experiments out, train a model with them, or use its networks, which learned all of those, "
            "anyway (--any-cell-type)"
        )
    return screen


def check_first_image(model: ModelManifest, source: ScreenSource, screen: Screen, bits: int | None) -> None:
    """Refuses images of another form before all of them are listed; packing checks each image.

    There is at least one plate. `bits` is pack.bits. InputError if the first image cannot be read, or channels, size or bit
    depth are others than those that the model was trained with.
    """
    if screen.channels != model.channels:
        raise InputError(
            f"{source.address()}: the channels are {', '.join(screen.channels)}, but model {model.short} was trained with "
            f"{', '.join(model.channels)}; name them in this order (screen.channels)"
        )
    try:
        form = image_form(source, screen, model.image_shape)
    except InputError as error:
        raise InputError(
            f"{error}; model {model.short} was trained with images of {pixels(model.image_shape)}"
        ) from None
    if model.dtype != (form.dtype if bits is None else "uint8"):
        raise InputError(
            f"{source.address()}: the images have {form.dtype} pixels, but model {model.short} was trained with {model.dtype}"
        )


def seen_before(model: ModelManifest, plates: Sequence[Plate]) -> list[str]:
    """Warnings about plates of an experiment that has the same name as a trained one."""
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
    """The plate design of a screen's labelled plates; None if they have none, or the prior is off. InputError for a faulty one."""
    if not prior.enabled or screen.has_no_design:
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
    model: ModelManifest, plates: Sequence[PlateRecord], address: str, store: str, run: str = ""
) -> Manifest:
    """A manifest in place of the training screen's: vocabulary, pixel histograms and plate design, and no wells.

    So the prediction of new plates reads no label and no image of a training well.

    `plates` are the model's `trained_plates`, `address` is the model's; `store` receives the new plates, `run` is the key of the
    run that packs them.
    """
    return Manifest(
        store=store,
        channels=model.channels,
        image_shape=model.image_shape,
        dtype=model.dtype,
        vocabulary=model.vocabulary,
        folds={},
        plates=tuple(plates),
        run=run,
        model=ReferenceModel(
            fingerprint=model.fingerprint, address=address, design=model.design, temperatures=model.temperatures
        ),
    )
