"""Plate maps that are drawn like the plate: rows A, B, ... by columns 1, 2, ..., in one block or several below each other."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd

from components.core.screen.wells import ROWS, well_at
from components.core.tables import DELIMITERS, decoded, unzipped

_LEAST = 2
"""Columns that a block has at least."""
_FIRST_ROW = re.compile(r"^\s*\"?A\"?[,;\t|]", re.IGNORECASE | re.MULTILINE)


def read_matrix(content: bytes, name: str) -> pd.DataFrame | None:
    """The wells of a map of blocks; None if it has none.

    A block is a line of the numbers of columns, and below it lines that begin with the letter of a row. A single text in a line
    above a block is its title.

    Args:
        content: the file's bytes, of CSV in any delimiter.
        name: the file's name in messages.

    Returns:
        A row a well and block: the block's number and `title` (empty without), `well` and `value`.

    Raises:
        InputError: it is no text.
    """
    content = unzipped(content, name)
    if content[:4] == b"PAR1":
        return None
    text = decoded(content, name)
    if not _FIRST_ROW.search(text):
        return None
    found = max((_blocks(text, delimiter) for delimiter in DELIMITERS), key=len)
    return found if len(found) else None


def _blocks(text: str, delimiter: str) -> pd.DataFrame:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    records: list[tuple[int, str, str, str]] = []
    title, block, columns, rows = "", 0, 0, 0
    try:
        for fields in reader:
            cells = [field.strip() for field in fields]
            while cells and not cells[-1]:
                cells.pop()
            if not cells:
                continue
            letter = cells[0].upper()
            numbers = [re.sub(r"\.0*$", "", cell) for cell in cells[1:]]
            if len(numbers) >= _LEAST and [cell.lstrip("0") for cell in numbers] == [
                str(n + 1) for n in range(len(numbers))
            ]:
                title, columns, rows = cells[0] if len(letter) > 1 else "" if rows else title, len(numbers), 0
                block += 1
            elif columns and rows < len(ROWS) and letter == ROWS[rows] and len(cells) <= columns + 1:
                rows += 1
                for column in range(columns):
                    value = cells[column + 1] if column + 1 < len(cells) else ""
                    records.append((block, title, well_at(rows, column + 1) or "", value))
            else:
                title, columns, rows = cells[0] if len(cells) == 1 else "", 0, 0
    except csv.Error:
        records = []
    table = pd.DataFrame(records, columns=["block", "title", "well", "value"], dtype=object)
    return table[table["well"] != ""]
