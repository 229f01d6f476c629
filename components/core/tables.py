"""Tables of wells, CSV or Parquet: strict reading into pandas, checks of every row, all faults in one line. Pure.

Every value stays the file's text without outer blanks: NA, 007 and 1e5 are labels.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from components.core.errors import SHOWN, InputError, one_line, shortened

ABSENT = frozenset({"", "nan", "na", "n/a", "null"})
"""Texts for a missing value in spreadsheets and data frames, in lower case."""
_FORMULA = re.compile(r"'*[=+\-@]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}
"""Control characters as they are written: escaped, as in Python."""
DELIMITERS = (",", ";", "\t", "|")
_SEP = re.compile(r"sep=(.)\r?\n")
"""The line by which Excel is told the delimiter."""


def read_table_file(path: Path, needed: Sequence[str], name: str | None = None) -> pd.DataFrame:
    """Reads a table's file; see `read_table`. `name` replaces the path in messages."""
    name = name or str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    return read_table(content, name, needed)


def read_table(content: bytes, name: str, needed: Sequence[str], records: bool = True) -> pd.DataFrame:
    """Parses a table with a header: Parquet, or CSV as spreadsheets of any country write it, gzipped or not.

    Of CSV, the encoding (UTF-8, UTF-16, or Windows' and ISO's Latin-1) and the delimiter (comma, semicolon, tab or `|`) are
    found; a byte-order mark, Excel's line `sep=`, lines of comments (`#`) above the header, CRLF line ends and blank lines, also
    of delimiters alone, are accepted. Numbers of Parquet become texts; whole ones lose their point, which pandas adds to a column
    with missing values.

    Args:
        content: the file's bytes.
        name: the file's name in messages.
        needed: required columns, once each.
        records: whether those of a CSV are read, or its columns alone.

    Returns:
        A row a record, indexed by its `line` in the file (in Parquet its number, from 1), with every column that is once in
        the header, as stripped text; `attrs["repeated"]` has the others.

    Raises:
        InputError: empty, not text, not CSV, a needed column is missing or appears twice, or records with more or fewer fields
            than the header.
    """
    content = unzipped(content, name)
    if content[:4] == b"PAR1":
        return _read_parquet(content, name, needed)
    text = decoded(content, name)
    # Not pandas.read_csv, which pads short records silently and does not know the line of a record.
    said = _SEP.match(text)
    skipped = 1 if said else 0
    text = text[said.end() :] if said else text
    comments = _comments(text, needed)
    skipped, text = skipped + len(comments), text[sum(map(len, comments)) :]
    delimiter = said[1] if said else _delimiter(text, needed)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines, read, odd = [], [], []
    try:
        header = [column.strip() for column in next(reader, [])]
        if not any(header):
            raise InputError(
                f"{name}: is empty; the table needs a line with the names of its columns, and one for each row"
            )
        _check_header(name, header, needed)
        for fields in reader if records else ():
            if not any(map(str.strip, fields)):  # spreadsheets write rows of delimiters alone
                continue
            if len(fields) != len(header):
                odd.append(
                    f"line {reader.line_num + skipped} ({fields[0]}): {len(fields)} fields, but the header has {len(header)}"
                )
                continue
            lines.append(reader.line_num + skipped)
            read.append([field.strip() for field in fields])
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num + skipped}: is not a CSV table ({error})") from None
    raise_faults(name, odd)
    columns = list(zip(*read, strict=True)) if read else [()] * len(header)
    unique = {
        column: columns[c]
        for c, column in enumerate(header)
        if header.count(column) == 1 and (column or any(columns[c]))  # spreadsheets write empty columns, too
    }
    table = pd.DataFrame(unique, index=pd.Index(lines, name="line", dtype="int64"), dtype=str)
    table.attrs["repeated"] = sorted({column for column in header if column and header.count(column) > 1})
    return table


def unzipped(content: bytes, name: str) -> bytes:
    """The bytes of a table, gzipped or not. InputError if they cannot be unpacked."""
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: cannot be unpacked ({error})") from None


def decoded(content: bytes, name: str) -> str:
    """The text of a CSV file. InputError if it is none."""
    if content[:4] == b"PK\x03\x04" or content[:4] == b"\xd0\xcf\x11\xe0":
        raise InputError(f"{name}: is an Excel workbook or a ZIP archive, not text; save the table as CSV (UTF-8)")
    even, odd = (content[start:64:2] for start in (0, 1))  # of UTF-16 one half of the bytes is zero in most alphabets
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encodings = ["utf-16"]
    elif 2 * even.count(0) > len(even) or 2 * odd.count(0) > len(odd):
        encodings = ["utf-16-le" if odd.count(0) > even.count(0) else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if "\0" not in text:
                return text
    raise InputError(f"{name}: is not text; save the table as CSV (UTF-8), or as Parquet")


def _comments(text: str, needed: Sequence[str]) -> list[str]:
    """The lines of comments above the header, which begin with `#`.

    One with as many fields as the line behind it may be the header: if nothing is between `#` and its text (`#id_code,well`), or if
    it has the needed columns.
    """
    lines: list[str] = []
    for line in io.StringIO(text, newline=""):
        if line.strip() and not line.startswith("#"):
            delimiter = _delimiter(line, needed)
            others = [each for each in lines if each.strip() and each.count(delimiter) >= line.count(delimiter)]
            said = all(each.startswith(("# ", "##")) and not _has(each, needed, delimiter) for each in others)
            return lines if said and any(each.startswith("#") for each in lines) else []
        lines.append(line)
    return []


def _has(line: str, needed: Sequence[str], delimiter: str) -> bool:
    """Whether there are needed columns, and a line has them all."""
    return bool(needed) and set(needed) <= {field.strip() for field in line.split(delimiter)}


def _delimiter(text: str, needed: Sequence[str]) -> str:
    """The delimiter that finds most of the needed columns in the header, then most columns at all."""
    header = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")

    def found(delimiter: str) -> tuple[int, int]:
        columns = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
        return len(set(needed) & set(columns)), len(columns)

    return max(DELIMITERS, key=found)


def _read_parquet(content: bytes, name: str, needed: Sequence[str]) -> pd.DataFrame:
    import pyarrow as pa  # imports are slow
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content)).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name}: is not a Parquet table ({str(error).splitlines()[0]})") from None
    header = [str(column).strip() for column in table.columns]
    _check_header(name, header, needed)
    unique = {
        column: [_text(value) for value in table.iloc[:, c]]
        for c, column in enumerate(header)
        if header.count(column) == 1
    }
    return pd.DataFrame(unique, index=pd.RangeIndex(1, len(table) + 1, name="line"), dtype=str)


def _text(value: object) -> str:
    """A value of a typed table as its CSV would have it."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _check_header(name: str, header: Sequence[str], needed: Sequence[str]) -> None:
    for column in needed:
        if header.count(column) == 1:
            continue
        problem = "is missing" if column not in header else "appears twice"
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


class Finding(NamedTuple):
    """One kind of thing that is wrong with, or doubtful in, a screen."""

    wrong: bool  # else doubtful
    what: str  # and what to do
    places: tuple[str, ...] = ()  # where: file and line, well or plate

    def __str__(self) -> str:
        return f"{self.what}: {shortened(self.places)}" if self.places else self.what


def as_finding(error: InputError) -> Finding:
    """What an error says, its faults apart."""
    if len(error.places) < 2:
        return Finding(True, str(error))
    return Finding(True, "faults of a table", error.places)


class TableFaults:
    """Collects the faults of a table, one for each field of a row, to report them together.

    The advice of a fault names its kind; what differs from row to row, such as the place of another row, is its detail.

    Args:
        name: the file's name in messages; also an attribute.
        table: as `read_table` returned it.
        id_column: the column that names a row in messages.
    """

    def __init__(self, name: str, table: pd.DataFrame, id_column: str = "id_code") -> None:
        self.name, self._table, self._id_column = name, table, id_column
        self._found: dict[tuple[int, str], tuple[str, str]] = {}

    def add(self, field: str, wrong: pd.Series[bool], advice: str, details: pd.Series[str] | None = None) -> None:
        """Records a fault of `field` in every row that `wrong` marks, unless the row has one of this field already.

        The advice, the fault or the expected value, follows the field's value and detail in the message.
        """
        for line in self._table.index[wrong]:
            self.add_at(line, field, advice, "" if details is None else str(details.at[line]))

    def add_at(self, line: int, field: str, advice: str, detail: str = "") -> None:
        """Records a fault of one row, unless its field has one already."""
        value = f"field {field} is {self._table.at[line, field]!r}" if field in self._table.columns else field
        self._found.setdefault((line, field), (f"{value}, {detail}" if detail else value, advice))

    def __len__(self) -> int:
        return len(self._found)

    def rows(self) -> pd.Series[bool]:
        """Which rows have a fault."""
        return pd.Series(self._table.index.isin([line for line, _ in self._found]), index=self._table.index)

    def findings(self) -> list[Finding]:
        """The faults by kind, in order of their first line."""
        kinds: dict[tuple[str, str], list[str]] = {}
        rows = self._table[self._id_column]
        for (line, field), (value, advice) in sorted(self._found.items(), key=lambda item: item[0][0]):
            kinds.setdefault((field, advice), []).append(f"{self.name} line {line} ({rows[line]}): {value}")
        return [Finding(True, f"{field}: {advice}", tuple(places)) for (field, advice), places in kinds.items()]

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
        places = tuple(f"{name} {fault}" for fault in faults)
        raise InputError(f"{name}{':' if len(faults) > 1 else ''} {one_line(faults)}{end}", places)
