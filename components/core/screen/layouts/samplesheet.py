"""The project's own layout: one table of all sites, `samplesheet.csv` (or .tsv, .parquet), with the paths of their images.

SCHEMA lists its columns; docs/your-data.md has them as a table. Paths are relative to the screen's folder, or absolute, or s3://.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from components.core.errors import InputError
from components.core.screen.layouts.plate_map import describe_wells, finish_wells
from components.core.screen.layouts.reading import KEY, Layout, Reading, Rows, fill_channels
from components.core.screen.layouts.stacks import NO_Z, report_missing, stack_sites


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
    Column("z", False, "plane of a z-stack, from 1: a row a plane (screen.z)"),
    Column("time", False, "time point: a row each (screen.time_point)"),
)
_FILE = re.compile(r"sample.?sheet\.(csv|tsv|txt|parquet)", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,6}")
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
    for field, start in (("site", 1), ("z", 0), ("time", 0)):
        if field in table.columns:
            texts = table[field]
            wrong = ~texts.isin([text for text in texts.unique() if _NUMBER.fullmatch(text) and int(text) >= start])
            faults.add(field, wrong, f"expected a whole number from {start}")
            numbers[field] = texts.where(~wrong, "0").astype(int)
    indices = [f"index_{name}" for name in paths if f"index_{name}" in table.columns]
    for column in indices:
        wrong = ~table[column].isin([text for text in table[column].unique() if not text or _NUMBER.fullmatch(text)])
        faults.add(column, wrong, "expected a whole number from 0, or nothing")
    wells = describe_wells(reading, table, faults, columns, [*paths.values(), *indices, "site", "z", "time"])
    wells = reading.chosen(finish_wells(reading, wells[wells["role"].notna()]).reset_index(drop=True))
    lines = pd.Index(wells["line"])
    if "site" in numbers:
        wells["site"] = numbers["site"].reindex(lines).to_numpy()
    else:
        wells["site"] = wells.groupby(KEY, sort=False).cumcount() + 1
    parts = []
    for name, column in paths.items():
        files = table[column].reindex(lines).str.replace("\\", "/", regex=False)
        index = table[f"index_{name}"].reindex(lines).replace("", "0") if f"index_{name}" in indices else "0"
        part = wells[[*KEY, "site", "line"]].assign(
            channel=name, path=files.to_numpy(), index=index if isinstance(index, str) else index.to_numpy()
        )
        part["z"] = numbers["z"].reindex(lines).to_numpy() if "z" in numbers else NO_Z
        part["t"] = numbers["time"].reindex(lines).to_numpy() if "time" in numbers else NO_Z
        parts.append(part[part["path"] != ""])
    planes = pd.concat(parts, ignore_index=True)
    planes["index"] = planes["index"].astype(int)
    places = faults.name + " line " + planes["line"].astype(str)
    planes = report_missing(reading, planes, places)
    sites, channels = stack_sites(reading, planes, list(paths))
    # A row of the table is a site, or of stacks and series a plane of it.
    twice = "z" not in numbers and "time" not in numbers
    first = wells if twice else wells.drop_duplicates([*KEY, "site"])
    merged = with_images(first, sites)
    return Rows(merged, channels, "looked for the paths of the table", columns, per_well=False)


def with_images(wells: pd.DataFrame, sites: pd.DataFrame) -> pd.DataFrame:
    """The rows of sites with the channels' columns; those without any image have site 0, one for a well."""
    merged = wells.merge(sites, on=[*KEY, "site"], how="left")
    channels = fill_channels(merged)
    bare = ~merged[channels].map(bool).any(axis=1)
    names = merged["experiment"] + "_" + merged["plate"] + "_" + merged["well"]
    empty = ~names.isin(names[~bare])
    merged["site"] = merged["site"].mask(empty, 0)
    return merged[~bare | (empty & ~names.duplicated())].reset_index(drop=True)


SAMPLESHEET = Layout("samplesheet", "samplesheet.csv, a row a site, with path_CHANNEL columns", found, read)
