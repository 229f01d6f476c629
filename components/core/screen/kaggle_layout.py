"""The Kaggle release's layout of a screen: four tables and train/ and test/ folders of images.

train.csv           id_code,experiment,plate,well,sirna             treatments of labelled experiments
test.csv            id_code,experiment,plate,well                   treatments of unlabelled experiments
*_controls.csv      id_code,experiment,plate,well,sirna,well_type   controls of either
{train,test}/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import cast

from components.core.errors import InputError
from components.core.screen.screen_source import ScreenSource
from components.core.screen.tables import Entry, Split, Table, read_rows
from components.core.storage.manifest import WellType

FOLDERS: dict[Split, str] = {"train": "train", "test": "test"}
"""Where the experiments' folders of images are."""
TABLES = ("train.csv", "test.csv", "train_controls.csv", "test_controls.csv")
"""All that are read."""

LABEL = "sirna"
"""The column of labels."""

_CONTROL_TYPES = ("positive_control", "negative_control")


def tables(place: ScreenSource) -> dict[Split, str]:
    """How messages name the tables of the treatments."""
    return {"train": place.address("train.csv"), "test": place.address("test.csv")}


def read_entries(
    place: ScreenSource, names: Collection[str], cell_types: Sequence[str] | None, labels: bool = True
) -> Iterator[Entry]:
    """All rows of all tables, treatments first.

    Args:
        place: the screen.
        names: files that are there.
        cell_types: the known ones; None takes any.
        labels: whether labels are read; without, their columns may be missing, and train.csv where there is a test.csv.

    Raises:
        InputError: train.csv cannot be read, or a row is malformed.
    """
    label = [LABEL] if labels else []
    if labels or "train.csv" in names or "test.csv" not in names:
        for row in read_rows(Table.read(place, "train.csv"), label, cell_types):
            yield Entry(row, "train", "treatment", row.values.get(LABEL))
    if "test.csv" in names:
        # A sirna column here would be the truth of unlabelled wells: it is not even read.
        for row in read_rows(Table.read(place, "test.csv"), [], cell_types):
            yield Entry(row, "test", "treatment", None)
    for split in FOLDERS:
        name = f"{split}_controls.csv"
        if name not in names:
            continue
        for row in read_rows(Table.read(place, name), [*label, "well_type"], cell_types):
            well_type = row.values["well_type"]
            if well_type not in _CONTROL_TYPES:
                raise InputError(
                    f"{row.where}: field well_type is {well_type!r}; expected {' or '.join(_CONTROL_TYPES)}"
                )
            yield Entry(row, split, cast(WellType, well_type), row.values.get(LABEL))
