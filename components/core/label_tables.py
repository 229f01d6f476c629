"""The labels of wells in tables of their own: truth, held-out labels, predictions of an earlier run.

Such a table has a row a well: its `id_code`, and its label in a column with the screen's word for a perturbation, `sirna` or
`compound`. Predictions have the label before the prior beside it, in `raw_sirna` or `raw_compound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from components.core.errors import InputError
from components.core.tables import read_table_file, unescaped

NAMES = ("perturbation", "sirna")
"""Columns that are read, too, if the screen's word is another: that of every table in code, and RxRx1's."""


def read_label_table(
    path: Path, column: str, needed: Sequence[str] = (), name: str | None = None, raw: bool = False
) -> tuple[pd.DataFrame, str]:
    """Reads a table of labels, which may come from a spreadsheet.

    Args:
        path: the table.
        column: the screen's column of labels, `screen.label_column`.
        needed: further columns.
        name: replaces the path in messages.
        raw: whether the labels before the prior are there, too.

    Returns:
        The table, its labels and id_codes as they were before they were escaped for spreadsheets, and the name of the column
        that has its labels.

    Raises:
        InputError: the table cannot be read, or has no such column.
    """
    table = read_table_file(path, ("id_code", *needed), name)
    found = next((each for each in (column, *NAMES) if each in table.columns), None)
    if found is None and raw:  # predictions of a model whose screen has another word
        found = next((each for each in table.columns if f"raw_{each}" in table.columns and each != "confidence"), None)
    missing = column if found is None else f"raw_{found}" if raw and f"raw_{found}" not in table.columns else None
    if missing is not None or found is None:
        needed = ("id_code", column, *([f"raw_{column}"] if raw else []), *needed)
        raise InputError(
            f"{name or path} line 1: column {missing} is missing; the header must have {', '.join(needed)}"
        )
    return unescaped(table), found
