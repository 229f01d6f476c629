"""Wells, plates and screens as the tables describe them. Pure data; layouts and images.py read files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from components.core.config import CHANNELS, PLATE_FORMATS
from components.core.storage.manifest import PlateRecord, Role, Vocabulary

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ROWS = (*_LETTERS, *(f"A{letter}" for letter in "ABCDEF"))
COLUMNS = tuple(f"{column:02d}" for column in range(1, 49))
"""Rows and columns of a 1536-well plate, as they appear in well names; smaller plates have the first of them."""

LONGEST_LABEL = 200
"""Characters of a label."""

_WELL = re.compile(r"([A-Z]|A[A-F])[ _-]?0*([1-9]\d?)", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")


class Plane(NamedTuple):
    """One image plane of a file."""

    path: str  # relative to the screen's folder, or absolute, or an address of S3; of OME-Zarr the folder of the array
    index: int = 0  # type: ignore[assignment]  # hides tuple.index: page of a TIFF, sample of a colour picture, or plane of an array over all axes but the last two, C order
    file: str = ""  # what planes its file must hold, as PlaneHeader.contents has it: those of the file that the index was found by


class Site(NamedTuple):
    """One imaged site of a well."""

    site: int  # its number, from 1
    channels: tuple[tuple[Plane, ...], ...]  # of each channel its planes: one, or those of a z-stack that are projected


@dataclass(frozen=True, slots=True)
class Well:
    """One well of a table."""

    id_code: str  # EXPERIMENT_PLATE_WELL
    well: str  # row letter and two-digit column, B03
    role: Role
    perturbation: str | None  # in the input's encoding; None if it is unknown or must stay unread
    sites: tuple[Site, ...]  # ascending; empty if no image was looked for
    extra: tuple[str, ...] = ()  # values of the screen's own columns


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate of an experiment and the wells that the tables list."""

    experiment: str
    plate: str
    cell_type: str
    labelled: bool  # whether the labels of its treatments are known
    holdout: bool  # whether the configuration holds its experiment out of training
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
    columns: tuple[str, ...] = ()  # names of the screen's own columns: Well.extra
    channels: tuple[str, ...] = CHANNELS  # names, in the order of Site.channels
    warnings: tuple[str, ...] = ()  # what is doubtful in tables and file names
    tables: tuple[str, ...] = ()  # paths of the tables that were read, relative to the screen's folder

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


def well_name(text: str) -> str | None:
    """A well's name in its standard form, `B03` or `AA02`, from `b3`, `B03`, `B003`, `B-3` or `B 03`; None if it is none."""
    match = _WELL.fullmatch(text)
    if match is None or int(match[2]) > len(COLUMNS):
        return None
    return f"{match[1].upper()}{int(match[2]):02d}"


def well_at(row: int, column: int) -> str | None:
    """The name of the well in a row and a column, from 1; None if no plate has them."""
    inside = 1 <= row <= len(ROWS) and 1 <= column <= len(COLUMNS)
    return ROWS[row - 1] + COLUMNS[column - 1] if inside else None


def split_well(well: str) -> tuple[str, str]:
    """Row and column of a well's name in its standard form."""
    return well[:-2], well[-2:]


def well_key(well: str) -> tuple[int, str, str]:
    """Sorting key of wells in row-major order."""
    row, column = split_well(well)
    return len(row), row, column


def plate_shape(wells: Iterable[str]) -> tuple[int, int]:
    """Rows and columns of the smallest plate that has all of the wells."""
    places = [split_well(well) for well in wells]
    rows = max((ROWS.index(row) + 1 for row, _ in places), default=1)
    columns = max((int(column) for _, column in places), default=1)
    return next(shape for shape in PLATE_FORMATS.values() if rows <= shape[0] and columns <= shape[1])


def is_label(text: str) -> bool:
    """Whether the text may name a perturbation: at most 200 printable characters."""
    return len(text) <= LONGEST_LABEL and text.isprintable()


def is_of(id_code: str, experiments: Iterable[str]) -> bool:
    """Whether EXPERIMENT_PLATE_WELL may be a well of one of some experiments: names of plates may hold `_`, too."""
    return id_code.startswith(tuple(f"{name}_" for name in experiments))


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorting key that puts sirna_2 before sirna_10; a total order, so that equal keys mean equal texts."""
    parts = (part for part in _DIGITS.split(text) if part)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts), text
