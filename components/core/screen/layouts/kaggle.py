"""The layout of the Kaggle release of RxRx1.

    train.csv       id_code,experiment,plate,well,sirna             treatments of labelled experiments
    test.csv        id_code,experiment,plate,well                   treatments of unlabelled experiments
    *_controls.csv  id_code,experiment,plate,well,sirna,well_type   controls of either
    {train,test}/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png

A column `cell_type` and columns of the screen's own may be added to each. Labels stay as they are written: their digits mean
nothing, since the releases number the perturbations in unrelated ways.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from components.core.screen.layouts.reading import (
    Layout,
    Reading,
    Rows,
    cell_types_of,
    check_cell_types,
    check_texts,
    find_roles,
    name_wells,
    named_own,
    own_columns,
)
from components.core.screen.layouts.well_files import find_sites
from components.core.tables import TableFaults

TABLES = {
    "train.csv": ("train", False),
    "test.csv": ("test", False),
    "train_controls.csv": ("train", True),
    "test_controls.csv": ("test", True),
}
"""For each table the half of the screen, and whether it lists controls."""
_KNOWN = ("id_code", "experiment", "plate", "well", "sirna", "well_type", "cell_type")
WELL_COLUMNS = ("id_code", "experiment", "plate", "well")
FIELDS = {"perturbation": "sirna", "role": "well_type"}


def found(reading: Reading) -> bool:
    """Whether the tables of this layout are there: others may be called train.csv, too."""
    headers = [set(reading.header(name)) for name in TABLES if name in reading.names]
    return any(
        not header or (len(header & set(WELL_COLUMNS)) > 1 and not header.isdisjoint(("id_code", "sirna")))
        for header in headers
    )


def read(reading: Reading) -> Rows:
    """Reads the tables; labels of unlabelled treatments are never read."""
    parts: list[pd.DataFrame] = []
    for name, (split, controls) in TABLES.items():
        # Without labels either half may be missing; the message about a screen without tables names train.csv.
        optional = name != "train.csv" or (not reading.labels and "test.csv" in reading.names)
        if optional and name not in reading.names:
            continue
        # A sirna column of test.csv would be the truth of unlabelled wells: it is not read.
        label = ["sirna"] if reading.labels and name != "test.csv" else []
        columns = [*label, *(["well_type"] if controls else [])]
        table = reading.table(name, [*WELL_COLUMNS, *columns], "id_code")
        faults = reading.faults[-1]
        faults.require([*WELL_COLUMNS, *columns])
        wells = typed(reading, table, faults, "id_code")
        wells["split"] = split
        wells["role"] = (
            find_roles(reading, table["well_type"], table["id_code"], "well_type") if controls else "treatment"
        )
        wells["perturbation"] = table["sirna"].astype(object) if label else None
        check_texts(table, faults, label)
        parts.append(wells.join(own_columns(table, _KNOWN))[~faults.rows() & wells["role"].notna()])
    wells = pd.concat(parts, ignore_index=True)
    own = named_own(wells)
    wells[own] = wells[own].fillna("")
    _check_halves(reading, wells)
    wells["labelled"] = wells.pop("split") == "train"
    wells = reading.chosen(wells)
    folders = (
        wells["labelled"].map({True: "train", False: "test"}) + "/" + wells["experiment"] + "/Plate" + wells["plate"]
    )
    sites, channels = find_sites(reading, wells, folders)
    fields = {**FIELDS, "site": "well"}
    looked_for = "looked for WELL_sSITE_wCHANNEL.png, .tif or .jpg in {train,test}/EXPERIMENT/PlateP"
    return Rows(sites, channels, looked_for, fields, per_well=True, strict=True)


def typed(reading: Reading, table: pd.DataFrame, faults: TableFaults, id_column: str) -> pd.DataFrame:
    """The columns that both releases of RxRx1 have; adds the faults of single fields."""
    experiment, plate = table["experiment"], table["plate"]
    well = name_wells(table["well"], faults, "well")
    check_texts(table, faults, ["experiment", "plate"])
    odd = experiment.str.contains("/", regex=False) | experiment.str.startswith(".")
    faults.add("experiment", odd, "it names a folder: expected no slash, and no dot at the start")
    odd = plate.str.contains("/", regex=False)
    faults.add("plate", odd, "it names a folder: expected no slash")
    if "cell_type" in table.columns and id_column == "id_code":
        cell_type: pd.Series[Any] = table["cell_type"]
        faults.require(["cell_type"])
        if reading.cell_types is not None:
            check_cell_types(cell_type, reading.cell_types, faults, "cell_type")
    else:
        cell_type = experiment.map(cell_types_of(reading, experiment.unique()))
        example = "expected CELLTYPE-NUMBER, for example HUVEC-01"
        advice = f"{example}; or add a column cell_type, or set screen.cell_types to one for all"
        faults.add("experiment", cell_type.isna(), advice)
        if reading.cell_types is not None:
            check_cell_types(cell_type, reading.cell_types, faults, "experiment")
    expected = experiment + "_" + plate + "_" + well.fillna("")
    written = experiment + "_" + plate + "_" + table["well"]
    other = ~table[id_column].isin([""]) & (table[id_column] != expected) & (table[id_column] != written) & well.notna()
    makes = expected[other].map(lambda id_code: f"but experiment, plate and well make {id_code}")
    faults.add(id_column, other, "expected EXPERIMENT_PLATE_WELL", makes)
    return pd.DataFrame(
        {
            "file": len(reading.faults) - 1,
            "line": table.index,
            "experiment": experiment,
            "plate": plate,
            "well": well,
            "cell_type": cell_type,
        },
        index=table.index,
    )


def _check_halves(reading: Reading, wells: pd.DataFrame) -> None:
    """Each experiment has treatments in one half of the tables, and nothing in the other."""
    treated = wells[wells["role"] == "treatment"].drop_duplicates("experiment")
    half = wells["experiment"].map(treated.set_index("experiment")["split"])
    row: Any
    for row in wells[half.isna()].itertuples():
        table = reading.source.address(f"{row.split}.csv")
        advice = f"it has controls but no treatment well in {table}; add its treatments or remove its controls"
        reading.faults[row.file].add_at(row.line, "experiment", advice)
    for row in wells[half.notna() & (half != wells["split"])].itertuples():
        advice = f"it is in the {row.split} half of the screen, but its treatments are in the {half[row.Index]} half"
        reading.faults[row.file].add_at(row.line, "experiment", f"{advice}; an experiment is either labelled or not")


KAGGLE = Layout("kaggle", found, read)
