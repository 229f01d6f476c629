"""The rows of one CSV table of wells, checked field by field. Pure; what the rows mean together is layout's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from components.core.errors import InputError
from components.core.screen.screen_source import ScreenSource, UnreadableError
from components.core.screen.wells import is_well_name
from components.core.storage.manifest import WellType

Split = Literal["train", "test"]

_ABSENT = frozenset({"", "nan", "na", "n/a", "null"})
"""What spreadsheet and data-frame programs write for a value that is not there, in lower case."""

_EXPERIMENT = re.compile(r"(?P<cell_type>[A-Za-z0-9][A-Za-z0-9._-]*)-[A-Za-z0-9._]+")
_PLATE = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class Row:
    """One well of a table, its own fields checked.

    Attributes:
        where: file, line and well, as messages name them.
        values: further columns that were asked for, by name.
    """

    where: str
    id_code: str
    experiment: str
    cell_type: str
    plate: int
    well: str
    values: dict[str, str]


class Entry(NamedTuple):
    """A well as a release's tables describe it.

    Attributes:
        row: where it stands.
        split: whether its experiment is labelled ("train") or not.
        well_type: what was put into the well.
        sirna: its label; None where the tables do not tell, or must not be asked.
    """

    row: Row
    split: Split
    well_type: WellType
    sirna: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV table as it lies there.

    Attributes:
        address: how messages name it.
        content: its bytes.
    """

    address: str
    content: bytes

    @classmethod
    def read(cls, place: ScreenSource, name: str) -> Table:
        """Reads a table of a screen.

        Raises:
            InputError: it cannot be read.
        """
        try:
            (content,) = place.read_many([name])
        except UnreadableError as error:
            raise InputError(f"{place.address(name)}: cannot be read ({error.reason})") from None
        return cls(place.address(name), content)


def read_rows(
    table: Table,
    columns: Sequence[str],
    cell_types: Sequence[str] | None,
    id_column: str = "id_code",
    unchecked: Sequence[str] = (),
) -> Iterator[Row]:
    """Reads a table with the columns id_code, experiment, plate, well and those of `columns`.

    Other columns are not looked at. A byte-order mark, CRLF line ends and blank lines are accepted.

    Args:
        table: its bytes.
        columns: further columns.
        cell_types: the known ones; None takes any.
        id_column: the column of id_codes.
        unchecked: those of `columns` that may be empty.

    Raises:
        InputError: a column is missing, or a field is empty or malformed; names file, line, well and field.
    """
    needed = (id_column, "experiment", "plate", "well", *columns)
    for line, record in read_records(table, needed):
        id_code = record[id_column]
        where = f"{table.address} line {line} ({id_code or f'no {id_column}'})"
        for field, value in record.items():
            if field not in unchecked:
                check_present(where, field, value)
        yield Row(where, id_code, *_place(where, record, id_column, cell_types), {c: record[c] for c in columns})


def check_present(where: str, field: str, value: str) -> None:
    """Refuses a field that is empty, or holds what programs write for nothing."""
    if value.lower() in _ABSENT:
        raise InputError(f"{where}: field {field} is empty (found {value!r}); fill it in or remove the row")


def read_records(table: Table, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The needed fields of each line, stripped, with the line's number; empty ones too.

    Raises:
        InputError: not a CSV table in UTF-8, a column is missing or comes twice, or a line has more or fewer fields than the
            header.
    """
    name = table.address
    try:
        reader = csv.reader(io.StringIO(table.content.decode("utf-8-sig"), newline=""), strict=True)
        header = [column.strip() for column in next(reader, [])]
        for column in needed:
            if header.count(column) != 1:
                problem = "is missing" if column not in header else "appears twice"
                raise InputError(f"{name}: column {column} {problem}; the header must have {', '.join(needed)}")
        places = [(column, header.index(column)) for column in needed]
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"{name} line {reader.line_num} ({fields[0]}): {len(fields)} fields where the header has "
                    f"{len(header)}; complete the row or remove it"
                )
            yield reader.line_num, {column: fields[place].strip() for column, place in places}
    except UnicodeDecodeError:
        raise InputError(f"{name}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{name}: is not a CSV table ({error})") from None


def _place(
    where: str, record: dict[str, str], id_column: str, cell_types: Sequence[str] | None
) -> tuple[str, str, int, str]:
    """Experiment, cell type, plate and well of a record."""
    experiment, plate, well = record["experiment"], record["plate"], record["well"]
    match = _EXPERIMENT.fullmatch(experiment)
    if match is None:
        raise InputError(f"{where}: field experiment is {experiment!r}; expected CELLTYPE-NUMBER, for example HUVEC-01")
    if cell_types is not None and match["cell_type"] not in cell_types:
        raise InputError(
            f"{where}: field experiment is {experiment!r}, of the unknown cell type {match['cell_type']!r}; known are "
            f"{', '.join(cell_types)} (screen.cell_types)"
        )
    if _PLATE.fullmatch(plate) is None:
        raise InputError(f"{where}: field plate is {plate!r}; expected a whole number from 1")
    if not is_well_name(well):
        raise InputError(f"{where}: field well is {well!r}; expected a row A-P and a column 01-24, for example B03")
    expected = f"{experiment}_{plate}_{well}"
    if record[id_column] != expected:
        raise InputError(f"{where}: field {id_column} disagrees with experiment, plate and well, which make {expected}")
    return experiment, match["cell_type"], int(plate), well
