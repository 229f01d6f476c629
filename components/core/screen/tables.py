"""The rows of one CSV table of wells, checked field by field. Reads files; what the rows mean together is layout's."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import InputError
from components.core.screen.wells import is_well_name

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


def read_rows(path: Path, columns: Sequence[str], cell_types: Sequence[str]) -> Iterator[Row]:
    """Reads a table with the columns id_code, experiment, plate, well and those of `columns`.

    Other columns are not looked at. A byte-order mark, CRLF line ends and blank lines are accepted.

    Raises:
        InputError: the file cannot be read, a column is missing, or a field is empty or malformed; names file, line,
            well and field.
    """
    needed = ("id_code", "experiment", "plate", "well", *columns)
    for line, record in _records(path, needed):
        where = f"{path} line {line} ({record['id_code'] or 'no id_code'})"
        for field, value in record.items():
            if value.lower() in _ABSENT:
                raise InputError(f"{where}: field {field} is empty (found {value!r}); fill it in or remove the row")
        yield Row(where, record["id_code"], *_place(where, record, cell_types), {c: record[c] for c in columns})


def _records(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The needed fields of each line, stripped, with the line's number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for column in needed:
                if header.count(column) != 1:
                    problem = "is missing" if column not in header else "appears twice"
                    raise InputError(f"{path}: column {column} {problem}; the header must have {', '.join(needed)}")
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise InputError(
                        f"{path} line {reader.line_num} ({fields[0]}): {len(fields)} fields where the header has "
                        f"{len(header)}; complete the row or remove it"
                    )
                record = dict(zip(header, (field.strip() for field in fields), strict=True))
                yield reader.line_num, {column: record[column] for column in needed}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV table ({error})") from None


def _place(where: str, record: dict[str, str], cell_types: Sequence[str]) -> tuple[str, str, int, str]:
    """Experiment, cell type, plate and well of a record."""
    experiment, plate, well = record["experiment"], record["plate"], record["well"]
    match = _EXPERIMENT.fullmatch(experiment)
    if match is None:
        raise InputError(f"{where}: field experiment is {experiment!r}; expected CELLTYPE-NUMBER, for example HUVEC-01")
    if match["cell_type"] not in cell_types:
        raise InputError(
            f"{where}: field experiment is {experiment!r}, of the unknown cell type {match['cell_type']!r}; known are "
            f"{', '.join(cell_types)} (screen.cell_types)"
        )
    if _PLATE.fullmatch(plate) is None:
        raise InputError(f"{where}: field plate is {plate!r}; expected a whole number from 1")
    if not is_well_name(well):
        raise InputError(f"{where}: field well is {well!r}; expected a row A-P and a column 01-24, for example B03")
    expected = f"{experiment}_{plate}_{well}"
    if record["id_code"] != expected:
        raise InputError(f"{where}: field id_code disagrees with experiment, plate and well, which make {expected}")
    return experiment, match["cell_type"], int(plate), well
