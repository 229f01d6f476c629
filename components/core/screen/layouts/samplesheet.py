"""The project's own layout: one table of all sites, `samplesheet.csv` (or .tsv, .parquet), with the paths of their images.

SCHEMA lists its columns; docs/your-data.md has them as a table. Paths are relative to the screen's folder, or absolute, or s3://.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from components.core.errors import InputError
from components.core.screen.layouts.plate_map import describe_wells, finish_wells
from components.core.screen.layouts.reading import (
    KEY,
    Layout,
    Reading,
    Rows,
    check_agreement,
    fill_channels,
    is_absent,
    whole_numbers,
)
from components.core.screen.layouts.stacks import NO_Z, find_files, stack_sites


class Column(NamedTuple):
    """A column of the sample sheet."""

    name: str
    needed: bool
    meaning: str


SCHEMA = (
    Column(
        "experiment", False, "batch: plates that were prepared and imaged together; without the column, one for all"
    ),
    Column("plate", True, "the plate's name or barcode, any text"),
    Column("well", True, "`B03`, `B3` or `b03`; rows A to AF, columns 1 to 48"),
    Column("site", False, "number of the site in its well, from 1; without the column, rows of a well are counted"),
    Column("perturbation", True, "the label; empty where it is unknown, and the well is predicted"),
    Column(
        "role",
        False,
        "`treatment`, `negative_control` or `positive_control`; wells of any other role are left out; empty is `treatment`",
    ),
    Column("cell_type", False, "the experiment's cell type; without the column, screen.cell_types names one for all"),
    Column("path_CHANNEL", True, "path of the channel's image, one column a channel; or `path` alone for one channel"),
    Column("index_CHANNEL", False, "page of a TIFF or sample of a colour picture, from 0; without the column, 0"),
    Column("z", False, "number of the plane in a z-stack: a row a plane (screen.z)"),
    Column("time", False, "time point: a row each (screen.time_point)"),
)
_FILE = re.compile(r"sample.?sheet\.((csv|tsv|txt)(\.gz)?|parquet)", re.IGNORECASE)
_COLUMNS = {name: name for name in ("experiment", "plate", "well", "role", "perturbation", "cell_type")}


def found(reading: Reading) -> bool:
    """Whether there is a sample sheet."""
    return any(_FILE.fullmatch(name) for name in reading.names)


def read(reading: Reading) -> Rows:
    """Reads the table."""
    path = next((name for name in sorted(reading.names) if _FILE.fullmatch(name)), "samplesheet.csv")
    given = {**_COLUMNS, **reading.config.table_columns}
    needed = ["plate", "well", *(["perturbation"] if reading.labels else [])]
    table = reading.table(path, [given[field] for field in needed])
    faults = reading.faults[-1]
    faults.require([given["plate"], given["well"]])
    columns = {field: column for field, column in given.items() if column in table.columns}
    paths = {
        column.removeprefix("path").removeprefix("_") or "image": column
        for column in table.columns
        if column == "path" or column.startswith("path_")
    }
    if not paths:
        raise InputError(f"{faults.name} line 1: no column of paths: expected path_CHANNEL for each channel, or path")
    numbers = {}
    for field, least, absent in (("site", 1, None), ("z", 0, NO_Z), ("time", 0, NO_Z)):
        if field in table.columns:
            numbers[field] = whole_numbers(table, field, faults, least, absent)
    indices = [f"index_{name}" for name in paths if f"index_{name}" in table.columns]
    numbers |= {column: whole_numbers(table, column, faults, absent=0) for column in indices}
    wells = describe_wells(reading, table, faults, columns, [*paths.values(), *indices, "site", "z", "time"])
    wells = reading.chosen(finish_wells(reading, wells[wells["role"].notna()]).reset_index(drop=True))
    lines = pd.Index(wells["line"])
    if "site" in numbers:
        wells["site"] = numbers["site"].reindex(lines).to_numpy()
    else:  # a row a site, but of stacks and series several
        several = any(numbers[field].nunique() > 1 for field in ("z", "time") if field in numbers)
        wells["site"] = 1 if several else wells.groupby(KEY, sort=False).cumcount() + 1
    source = faults.name + " line " + lines.astype(str)
    parts = []
    for name, column in paths.items():
        part = wells[[*KEY, "site"]].assign(channel=name, path=table[column].reindex(lines).to_numpy(), source=source)
        for axis, field, absent in (("index", f"index_{name}", 0), ("z", "z", NO_Z), ("t", "time", NO_Z)):
            part[axis] = numbers[field].reindex(lines).to_numpy() if field in numbers else absent
        parts.append(part[~is_absent(part["path"])])
    planes = find_files(reading, pd.concat(parts, ignore_index=True))
    sites, channels = stack_sites(reading, planes, list(paths), bool(indices))
    merged = with_images(reading, wells, sites, columns)
    return Rows(merged, channels, "looked for the paths of the table", columns, per_well=False)


def with_images(reading: Reading, rows: pd.DataFrame, sites: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The rows of sites with the channels' columns; those without any image have site 0, one for a well.

    Rows are a site each, or a plane of it, and must agree on their well.
    """
    check_agreement(reading, rows, columns)
    merged = rows.drop_duplicates([*KEY, "site"]).merge(sites, on=[*KEY, "site"], how="left")
    channels = fill_channels(merged)
    bare = ~merged[channels].map(bool).any(axis=1)
    names = merged["experiment"] + "_" + merged["plate"] + "_" + merged["well"]
    empty = ~names.isin(names[~bare])
    merged["site"] = merged["site"].mask(empty, 0)
    return merged[~bare | (empty & ~names.duplicated())].reset_index(drop=True)


SAMPLESHEET = Layout("samplesheet", found, read)
