"""The labels of wells in tables of their own: truth, held-out labels, predictions of an earlier run.

Such a table has a row a well: its `id_code`, and its label in a column with the screen's word for a perturbation, `sirna` or
`compound`. Predictions have the label before the prior beside it, in `raw_sirna` or `raw_compound`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
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


def matched_labels(labels: pd.Series[str], treatments: Collection[str]) -> tuple[pd.Series[str], str]:
    """Labels of a table as the screen writes them, where pandas or a person wrote them in another way.

    `7.0` or `07` is read as `7`, `7` as `sirna_7`, and `sirna_7` as `7`, if every label that is none of the screen's is that of
    just one treatment. Otherwise all stay as they are.

    Args:
        labels: as written.
        treatments: the screen's labels.

    Returns:
        The labels, and what to tell the user; empty if nothing was changed.
    """
    odd = labels[~labels.isin(list(treatments))].unique().tolist()
    known, written = ({label: _prefix_and_number(label) for label in each} for each in (treatments, odd))
    for with_prefix in (True, False):
        if not with_prefix and not _one_without_prefix(known.values(), written.values()):
            break
        of_key: dict[object, list[str]] = {}
        for label, (prefix, number) in known.items():
            of_key.setdefault((prefix if with_prefix else "", number), []).append(label)
        found = {
            label: of_key.get((prefix if with_prefix else "", number), [])
            for label, (prefix, number) in written.items()
        }
        if odd and all(len(each) == 1 for each in found.values()):
            renamed = {label: each[0] for label, each in found.items()}
            remark = (
                f"{len(odd)} labels are not written as in the screen's tables; each is read as the treatment of its number, "
                f"{odd[0]!r} as {renamed[odd[0]]!r}"
            )
            return labels.replace(renamed), remark
    return labels, ""


def _prefix_and_number(label: str) -> tuple[str, int | None]:
    """What a label has before the whole number at its end, and the number; None without one."""
    match = re.fullmatch(r"(.*?)([0-9]{1,18})(?:\.0*)?", label)
    return (match[1], int(match[2])) if match else (label, None)


def _one_without_prefix(*forms: Collection[tuple[str, int | None]]) -> bool:
    """Whether all labels have numbers, those of a table one and the same prefix, and those of one table none."""
    prefixes = [{prefix for prefix, _ in each} for each in forms]
    numbered = all(number is not None for each in forms for _, number in each)
    return numbered and all(len(own) == 1 for own in prefixes) and {""} in prefixes
