"""Wells, plates and screens as the tables describe them. Pure data; layouts.py and images.py read files."""

from __future__ import annotations

import re
from dataclasses import dataclass

from components.core.storage.manifest import Vocabulary, WellType

ROWS = tuple("ABCDEFGHIJKLMNOP")
COLUMNS = tuple(f"{column:02d}" for column in range(1, 25))
"""Rows and columns of a 384-well plate, as they appear in well names."""

_WELL = re.compile(r"[A-P](0[1-9]|1[0-9]|2[0-4])")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Well:
    """One row of a table.

    Attributes:
        id_code: EXPERIMENT_PLATE_WELL.
        well: row letter and two-digit column, B03.
        well_type: what was put into the well.
        sirna: label in the input's encoding; None if it is unknown or must stay unread.
    """

    id_code: str
    well: str
    well_type: WellType
    sirna: str | None


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate of an experiment: its folder of images and the wells that the tables list.

    Attributes:
        labelled: whether the labels of its treatments are known.
        holdout: whether the configuration holds its experiment out of training.
        folder: of the plate's image files, relative to the screen.
        wells: in row-major order.
    """

    experiment: str
    plate: int
    cell_type: str
    labelled: bool
    holdout: bool
    folder: str
    wells: tuple[Well, ...]

    @property
    def name(self) -> str:
        """The plate's name in messages."""
        return f"{self.experiment} plate {self.plate}"


@dataclass(frozen=True, slots=True)
class Screen:
    """The contents of the tables, checked.

    Attributes:
        plates: experiments in natural order, plates ascending.
        vocabulary: the classes of the whole screen, held-out experiments included.
    """

    plates: tuple[Plate, ...]
    vocabulary: Vocabulary

    def training_experiments(self) -> dict[str, list[str]]:
        """Labelled experiments that are not held out, by cell type, in natural order."""
        found: dict[str, list[str]] = {}
        for plate in self.plates:
            names = found.setdefault(plate.cell_type, []) if plate.labelled and not plate.holdout else None
            if names is not None and plate.experiment not in names:
                names.append(plate.experiment)
        return found


def is_well_name(text: str) -> bool:
    """Whether the text names a well of a 384-well plate: A01 to P24."""
    return _WELL.fullmatch(text) is not None


def experiment_of(id_code: str) -> str:
    """The experiment of EXPERIMENT_PLATE_WELL."""
    return id_code.rsplit("_", 2)[0]


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorting key that puts sirna_2 before sirna_10; a total order, so that equal keys mean equal texts."""
    parts = (part for part in _DIGITS.split(text) if part)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts), text
