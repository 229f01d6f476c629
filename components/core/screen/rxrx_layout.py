"""The rxrx.ai release's layout of a screen: one table with a row for every site, and one folder of images.

    metadata.csv    site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id
    images/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png

Labels are the column sirna_id; the column sirna, the manufacturer's number, is not read. The release tells the siRNAs of
the unlabelled half (dataset test) too: those of its treatments are the truth that predictions are compared with, and are
left unread as well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import cast, get_args

from components.core.errors import InputError
from components.core.screen.screen_source import ScreenSource
from components.core.screen.tables import Entry, Row, Split, Table, check_present, read_rows
from components.core.storage.manifest import WellType

METADATA = "metadata.csv"
FOLDERS: dict[Split, str] = {"train": "images", "test": "images"}
"""Where the experiments' folders of images are."""

LABEL = "sirna_id"
"""The column of labels."""

_OF_WELL = ("dataset", "well_type", LABEL)
_COLUMNS = ("cell_type", "site", *_OF_WELL)
_SITE = re.compile(r"[1-9][0-9]{0,2}")


def tables(place: ScreenSource) -> dict[Split, str]:
    """How messages name the tables of the treatments."""
    return dict.fromkeys(FOLDERS, place.address(METADATA))


def read_entries(
    place: ScreenSource, names: Collection[str], cell_types: Sequence[str] | None, labels: bool = True
) -> Iterator[Entry]:
    """The wells of the table, treatments first.

    Args:
        place: the screen.
        names: files that are there; not needed.
        cell_types: the known ones; None takes any.
        labels: whether labels are read; without, their column may be missing.

    Raises:
        InputError: the table cannot be read, a row is malformed, or two rows of a well disagree.
    """
    wells: dict[str, Row] = {}
    sites: set[tuple[str, str]] = set()
    columns = _COLUMNS if labels else tuple(column for column in _COLUMNS if column != LABEL)
    for row in read_rows(Table.read(place, METADATA), columns, cell_types, "well_id", unchecked=[LABEL]):
        _check(row)
        if (row.id_code, row.values["site"]) in sites:
            raise InputError(
                f"{row.where}: site {row.values['site']} of the well appears twice; remove one of the rows"
            )
        sites.add((row.id_code, row.values["site"]))
        first = wells.setdefault(row.id_code, row)
        for field in _OF_WELL[:-1] if _is_hidden(row) else _OF_WELL:
            if row.values[field] != first.values[field]:
                raise InputError(
                    f"{row.where}: field {field} disagrees with {first.where}, another site of the well; correct one of them"
                )
    entries = [_entry(row) for row in wells.values()]
    yield from sorted(entries, key=lambda entry: entry.well_type != "treatment")


def _check(row: Row) -> None:
    expected = {"dataset": tuple(FOLDERS), "well_type": get_args(WellType), "cell_type": (row.cell_type,)}
    for field, known in expected.items():
        if row.values[field] not in known:
            raise InputError(f"{row.where}: field {field} is {row.values[field]!r}; expected {' or '.join(known)}")
    if _SITE.fullmatch(row.values["site"]) is None:
        raise InputError(f"{row.where}: field site is {row.values['site']!r}; expected a whole number from 1")
    if not _is_hidden(row):
        check_present(row.where, LABEL, row.values[LABEL])


def _is_hidden(row: Row) -> bool:
    """Whether the row's label is truth that must not be looked at, or was not read."""
    if LABEL not in row.values:
        return True
    return row.values["dataset"] == "test" and row.values["well_type"] == "treatment"


def _entry(row: Row) -> Entry:
    split, well_type = cast(Split, row.values["dataset"]), cast(WellType, row.values["well_type"])
    return Entry(row, split, well_type, None if _is_hidden(row) else row.values[LABEL])
