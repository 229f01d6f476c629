"""Plate maps that are drawn like the plate: rows A, B, ... by columns 1, 2, ..., in one block or several below each other."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise

import pandas as pd

from components.core.screen.wells import ROWS, well_at
from components.core.tables import DELIMITERS, decoded, unzipped

_LEAST = 2
"""Columns that a block has at least."""
_A_ROW = re.compile(r"^\s*\"?(?:[A-Z]|A[A-F])\"?[,;\t|]", re.IGNORECASE | re.MULTILINE)


def read_matrix(content: bytes, name: str) -> pd.DataFrame | None:
    """The wells of a map of blocks; None if it has none.

    A block is a line of the numbers of columns that follow each other, and below it lines that begin with the letters of such rows;
    it may have only the plate's inner ones. A single text in a line above a block is its title, or else the corner's.

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
    if not _A_ROW.search(text):
        return None
    found = max((_blocks(text, delimiter) for delimiter in DELIMITERS), key=len)
    return found if len(found) else None


def _blocks(text: str, delimiter: str) -> pd.DataFrame:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    records: list[tuple[int, str, str, str]] = []
    title, block, row = "", 0, 0
    columns: list[int] = []
    try:
        for fields in reader:
            cells = [field.strip() for field in fields]
            while cells and not cells[-1]:
                cells.pop()
            if not cells:
                continue
            letter = cells[0].upper()
            number = ROWS.index(letter) + 1 if letter in ROWS else 0
            numbers = [int(whole) if (whole := re.sub(r"\.0*$", "", cell)).isdecimal() else 0 for cell in cells[1:]]
            following = all(one + 1 == other for one, other in pairwise(numbers))
            if len(numbers) >= _LEAST and not number and numbers[0] > 0 and following:
                corner = cells[0] if any(map(str.isalpha, letter)) else ""
                title, columns, row = ("" if row else title) or corner, numbers, 0
                block += 1
            elif columns and number and row in (0, number - 1) and len(cells) <= len(columns) + 1:
                row = number
                for n, column in enumerate(columns, 1):
                    records.append((block, title, well_at(row, column) or "", cells[n] if n < len(cells) else ""))
            else:
                title, columns, row = cells[0] if len(cells) == 1 else "", [], 0
    except csv.Error:
        records = []
    table = pd.DataFrame(records, columns=["block", "title", "well", "value"], dtype=object)
    return table[table["well"] != ""]
