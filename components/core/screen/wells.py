"""Wells, plates and screens as the tables describe them. Pure data; layouts.py and images.py read files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from components.core.storage.manifest import PlateRecord, Role, Vocabulary

ROWS = tuple("ABCDEFGHIJKLMNOP")
COLUMNS = tuple(f"{column:02d}" for column in range(1, 25))
"""Rows and columns of a 384-well plate, as they appear in well names."""

LONGEST_LABEL = 200
"""Characters of a label."""

_WELL = re.compile(r"[A-P](0[1-9]|1[0-9]|2[0-4])")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Well:
    """One well of a table."""

    id_code: str  # EXPERIMENT_PLATE_WELL
    well: str  # row letter and two-digit column, B03
    role: Role
    perturbation: str | None  # in the input's encoding; None if it is unknown or must stay unread
    extra: tuple[str, ...] = ()  # values of the screen's own columns


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate of an experiment: its folder of images and the wells that the tables list."""

    experiment: str
    plate: str
    cell_type: str
    labelled: bool  # whether the labels of its treatments are known
    holdout: bool  # whether the configuration holds its experiment out of training
    folder: str  # of its image files, relative to the screen
    wells: tuple[Well, ...]  # in row-major order

    @property
    def name(self) -> str:
        """The plate's name in messages."""
        return f"{self.experiment} plate {self.plate}"


@dataclass(frozen=True, slots=True)
class Screen:
    """The contents of the tables, checked."""

    plates: tuple[Plate, ...]  # experiments in natural order, plates in natural order
    vocabulary: Vocabulary  # classes of the whole screen, held-out experiments included
    columns: tuple[str, ...] = ()  # names of the screen's own columns

    @property
    def training_plates(self) -> tuple[Plate, ...]:
        """Plates of labelled experiments that are not held out."""
        return tuple(plate for plate in self.plates if plate.labelled and not plate.holdout)

    def training_experiments(self) -> dict[str, list[str]]:
        """Experiments of the training plates by cell type, in natural order."""
        return experiments_by_cell_type(self.training_plates)


def experiments_by_cell_type(plates: Iterable[Plate | PlateRecord]) -> dict[str, list[str]]:
    """The plates' experiments by cell type, in the order of the plates."""
    found: dict[str, dict[str, None]] = {}
    for plate in plates:
        found.setdefault(plate.cell_type, {})[plate.experiment] = None
    return {cell_type: list(names) for cell_type, names in found.items()}


def is_well_name(text: str) -> bool:
    """Whether the text names a well of a 384-well plate: A01 to P24."""
    return _WELL.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Whether the text may name a perturbation: at most 200 printable characters."""
    return len(text) <= LONGEST_LABEL and text.isprintable()


def experiment_of(id_code: str) -> str:
    """The experiment of EXPERIMENT_PLATE_WELL."""
    return id_code.rsplit("_", 2)[0]


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorting key that puts sirna_2 before sirna_10; a total order, so that equal keys mean equal texts."""
    parts = (part for part in _DIGITS.split(text) if part)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts), text
