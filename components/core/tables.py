"""CSV tables of wells: strict reading into pandas, checks of every row, all faults in one line. Pure; no layout knowledge.

Every value stays the file's text without outer blanks: NA, 007 and 1e5 are labels.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from components.core.errors import SHOWN, InputError, one_line

ABSENT = frozenset({"", "nan", "na", "n/a", "null"})
"""Texts for a missing value in spreadsheets and data frames, in lower case."""
_FORMULA = re.compile(r"'*[=+\-@]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}
"""Control characters as they are written: escaped, as in Python."""


def read_table_file(path: Path, needed: Sequence[str], name: str | None = None) -> pd.DataFrame:
    """Reads a CSV file; see `read_table`. `name` replaces the path in messages."""
    name = name or str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    return read_table(content, name, needed)


def read_table(content: bytes, name: str, needed: Sequence[str]) -> pd.DataFrame:
    """Parses a CSV table in UTF-8 with a header. A byte-order mark, CRLF line ends and blank lines are accepted.

    Args:
        content: the file's bytes.
        name: the file's name in messages.
        needed: required columns, once each.

    Returns:
        A row a record, indexed by its `line` in the file, with every column that is once in the header, as stripped text.

    Raises:
        InputError: not UTF-8, not CSV, a needed column is missing or appears twice, or records with more or fewer fields
            than the header.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {line}: is not UTF-8 text; save the table as CSV in UTF-8") from None
    # Not pandas.read_csv, which pads short records silently and does not know the line of a record.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, records, odd = [], [], []
    try:
        header = [column.strip() for column in next(reader, [])]
        _check_header(name, header, needed)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                odd.append(
                    f"line {reader.line_num} ({fields[0]}): {len(fields)} fields, but the header has {len(header)}"
                )
                continue
            lines.append(reader.line_num)
            records.append([field.strip() for field in fields])
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num}: is not a CSV table ({error})") from None
    raise_faults(name, odd)
    columns = list(zip(*records, strict=True)) if records else [()] * len(header)
    unique = {column: columns[c] for c, column in enumerate(header) if header.count(column) == 1}
    return pd.DataFrame(unique, index=pd.Index(lines, name="line", dtype="int64"), dtype=str)


def _check_header(name: str, header: Sequence[str], needed: Sequence[str]) -> None:
    for column in needed:
        if header.count(column) == 1:
            continue
        problem = "is missing" if column not in header else "appears twice"
        other = next((sign for sign in ";\t" if len(header) == 1 and sign in header[0]), None)
        if other:
            problem += f": fields are separated by {other!r} instead of commas"
        raise InputError(f"{name} line 1: column {column} {problem}; the header must have {', '.join(needed)}")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV; see `csv_bytes`."""
    path.write_bytes(csv_bytes(table))


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A table as CSV in UTF-8 without its index: floats with six significant digits, missing values empty, LF line ends.

    A text that a spreadsheet would execute, which begins with `=`, `+`, `-` or `@` and is no number, gets an apostrophe first;
    `unescaped` takes it away. Control characters are escaped.
    """
    table = table.rename(columns=_escape)
    texts = [column for column in table.columns if not pd.api.types.is_numeric_dtype(table[column])]
    table = table.assign(**{column: table[column].map(_escape, na_action="ignore") for column in texts})
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def unescaped(table: pd.DataFrame) -> pd.DataFrame:
    """The texts of a table that `csv_bytes` wrote, without the apostrophes that it put first."""
    return table.map(lambda text: text[1:] if text.startswith("'") and _FORMULA.match(text) else text)


def _escape(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value if value.isprintable() else value.translate(_CONTROL)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


class TableFaults:
    """Collects the faults of a table, one for each field of a row, to report them together.

    Args:
        name: the file's name in messages; also an attribute.
        table: as `read_table` returned it.
        id_column: the column that names a row in messages.
    """

    def __init__(self, name: str, table: pd.DataFrame, id_column: str = "id_code") -> None:
        self.name, self._table, self._id_column = name, table, id_column
        self._found: dict[tuple[int, str], tuple[str, str]] = {}

    def add(self, field: str, wrong: pd.Series[bool], advice: str | pd.Series[str]) -> None:
        """Records a fault of `field` in every row that `wrong` marks, unless the row has one of this field already.

        The advice, the fault or the expected value, follows the field's value in the message; it is one text, or one a row.
        """
        for line in self._table.index[wrong]:
            self.add_at(line, field, advice if isinstance(advice, str) else str(advice.at[line]))

    def add_at(self, line: int, field: str, advice: str) -> None:
        """Records a fault of one row, unless its field has one already."""
        self._found.setdefault((line, field), (f"field {field} is {self._table.at[line, field]!r}", advice))

    def require(self, fields: Sequence[str]) -> None:
        """Records the rows in which one of the fields is empty, or a text for a missing value."""
        for field in fields:
            missing = self._table[field].str.lower().isin(ABSENT)
            self.add(field, missing, "it is empty: fill it in or remove the row")

    def require_one_of(self, fields: Sequence[str], allowed: Collection[str], advice: str) -> None:
        """Records the rows in which one of the fields holds none of the allowed values."""
        for field in fields:
            self.add(field, ~self._table[field].isin(list(allowed)), advice)

    def require_unique(self, field: str) -> None:
        """Records every row but the first of those that share a value."""
        self.add(field, self._table[field].duplicated(), "it appears twice: remove one of the rows")

    def numbers(self, field: str, low: float = 0.0, high: float = 1.0) -> pd.Series[float]:
        """The field's numbers; records the rows in which it is no number from `low` to `high`.

        Values beyond a bound by less than 1e-6, a rounding error, are moved to it.
        """
        values = pd.to_numeric(self._table[field], errors="coerce").astype(float)
        self.add(field, ~values.between(low - 1e-6, high + 1e-6), f"expected a number from {low:g} to {high:g}")
        return values.clip(low, high)

    def check(self) -> None:
        """Raises InputError with the number of faults and the first five, by line; returns if there are none.

        Advice that those five share is given once, at the end.
        """
        rows = self._table[self._id_column]
        found = sorted(self._found.items(), key=lambda item: item[0][0])
        faults = [f"line {line} ({rows[line]}): {fault}" for (line, _), (fault, _) in found]
        advice = [each for _, (_, each) in found]
        if len(set(advice[:SHOWN])) == 1:
            raise_faults(self.name, faults, f"; {advice[0]}")
        raise_faults(self.name, [f"{fault}; {each}" for fault, each in zip(faults, advice, strict=True)])


def raise_faults(name: str, faults: Sequence[str], end: str = "") -> None:
    """Raises InputError for a table's faults: their number and the first five, in one line; returns if there are none."""
    if faults:
        raise InputError(f"{name}{':' if len(faults) > 1 else ''} {one_line(faults)}{end}")
