"""Plates that a model is to predict: what the tables say of them, and whether its networks can. Reads tables and one image."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from components.core.config import CHANNELS
from components.core.registry.model_manifest import ModelManifest
from components.core.screen.images import list_plate, read_sites
from components.core.screen.layouts import read_new_plates
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate

_PNG = b"\x89PNG\r\n\x1a\n"
_SIDES = 16
"""Where the header of a PNG tells its width and height."""
_SHOWN = 5


def plates_for(
    model: ModelManifest, place: ScreenSource, experiments: Sequence[str], any_cell_type: bool, said: str = "screen"
) -> tuple[Plate, ...]:
    """The plates that are to be predicted, by the tables; no label is read.

    Args:
        model: the model.
        place: where the tables are.
        experiments: the wanted ones; none for all.
        any_cell_type: whether networks that learned all cell types may name wells of another one.
        said: how the user named the screen.

    Raises:
        InputError: as read_new_plates, or a cell type that the model does not know.
    """
    plates = read_new_plates(place, experiments)
    cell_types = {plate.cell_type for plate in plates}
    model.check_screen(model.channels, model.image_size, cell_types, said, any_cell_type)
    return plates


def check_first_image(
    model: ModelManifest, place: ScreenSource, plates: Sequence[Plate], sites: int, said: str = "screen"
) -> None:
    """Refuses images of another size before all of them are listed; each is looked at where it is packed.

    Args:
        model: the model.
        place: where the images are.
        plates: at least one.
        sites: largest number of sites a well has.
        said: how the user named the screen.

    Raises:
        InputError: its images cannot be listed or read, or are of another size than the model knows.
    """
    files = list_plate(place, plates[0], sites)
    first = read_sites(files, files.sites[:1])[0][0]
    if first.startswith(_PNG) and len(first) >= _SIDES + 8:
        width, height = struct.unpack_from(">II", first, _SIDES)
        if width == height:  # else packing says what is wrong with the file
            model.check_screen(len(CHANNELS), width, (), said)


def seen_before(model: ModelManifest, plates: Sequence[Plate]) -> list[str]:
    """What to say of plates that go by the name of an experiment that the networks saw; empty where there are none."""
    messages = []
    for names, what, so in (
        (
            model.learned_from,
            "learned the labels of",
            "its names tell nothing of how well new plates are named",
        ),
        (set(model.unlabelled), "was trained on images of", "its names are not those of plates that it never saw"),
    ):
        found = list(dict.fromkeys(plate.experiment for plate in plates if plate.experiment in names))
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            messages.append(
                f"the model {what} {', '.join(found[:_SHOWN])}{more}; where it is the same experiment, {so}"
            )
    return messages
