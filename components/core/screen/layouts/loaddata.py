"""CellProfiler's LoadData tables: FileName_CHANNEL and PathName_CHANNEL, or URL_CHANNEL, and Metadata_ columns, a row a site.

    load_data.csv   or load_data_csv/BATCH/PLATE/load_data.csv, as in JUMP; also .parquet

Perturbations are in a Metadata_ column, or in a plate map beside it: JUMP's barcode_platemap.csv, or any (plate_map.py). Columns of
illumination functions are no images. Source: https://cellprofiler-manual.s3.amazonaws.com/CellProfiler-4.2.6/modules/fileprocessing.html
"""

from __future__ import annotations

import re
from posixpath import join
from urllib.parse import unquote, urlsplit

import pandas as pd

from components.core.errors import InputError
from components.core.screen.layouts.plate_map import (
    describe_wells,
    find_columns,
    finish_wells,
    join_wells,
    read_plate_map,
)
from components.core.screen.layouts.reading import KEY, Layout, Reading, Rows, is_absent, named_own, own_column
from components.core.screen.layouts.samplesheet import with_images
from components.core.screen.layouts.stacks import NO_Z, report_missing, stack_sites

_FILE = re.compile(r".*load_?data.*\.(csv|parquet)", re.IGNORECASE)
_CHANNEL = re.compile(r"(?:FileName|URL)_(.+)")
_ILLUMINATION = re.compile(r"Illum|Mask|Outline", re.IGNORECASE)
_STEP = {
    "z": re.compile(r"(?i)(Metadata_)?(Z|ZPlane|Plane|PlaneID)"),
    "t": re.compile(r"(?i)(Metadata_)?(T|TimePoint|Time|TimepointID)"),
}


def found(reading: Reading) -> bool:
    """Whether there are LoadData tables."""
    return bool(_tables(reading))


def _tables(reading: Reading) -> list[str]:
    """The LoadData tables: one in the screen's folder, or one a plate below load_data_csv."""
    names = sorted(name for name in reading.names if _FILE.fullmatch(name))
    if not names:
        below = sorted(
            facts.name for facts in reading.source.list_trees(["load_data_csv"]) if _FILE.fullmatch(facts.name)
        )
        folders = {
            path.rpartition("/")[0]: path
            for path in reversed([path for path in below if "illum" not in path.lower()] or below)
        }
        return sorted(folders.values())
    plain = [name for name in names if "illum" not in name.lower()]
    return (plain or names)[:1] if len({_stem(name) for name in plain or names}) == 1 else plain or names


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def read(reading: Reading) -> Rows:
    """Reads the tables, and the plate map if none of their columns has perturbations."""
    parts = [_read_table(reading, path) for path in _tables(reading)]
    if not parts:
        raise InputError(
            f"{reading.source.address()}: there is no LoadData table: expected load_data.csv, or load_data_csv/*/*/load_data.csv"
        )
    planes = pd.concat([planes for planes, _, _ in parts], ignore_index=True)
    rows = pd.concat([rows for _, rows, _ in parts], ignore_index=True).fillna({"perturbation": ""})
    columns = parts[0][2]
    names = [reading.faults[file].name for file in planes["file"]]
    planes = report_missing(
        reading, planes, pd.Series(names, index=planes.index) + " line " + planes["line"].astype(str)
    )
    order = list(dict.fromkeys(planes["channel"]))
    if "perturbation" in columns:
        rows["perturbation"] = (
            rows["perturbation"].astype(object).mask(is_absent(rows["perturbation"].astype(str)), None)
        )
        rows = reading.chosen(finish_wells(reading, rows[rows["role"].notna()]).reset_index(drop=True))
        planes = planes.assign(experiment=planes["experiment"].replace("", "screen"))
        sites, channels = stack_sites(reading, planes, order)
        merged = with_images(
            rows.drop_duplicates([*KEY, "site"]) if planes["z"].nunique() > 1 or planes["t"].nunique() > 1 else rows,
            sites,
        )
        fields, per_well = columns, False
    else:
        sites, channels = stack_sites(reading, planes, order)
        wells, fields = read_plate_map(reading)
        plates = rows[["experiment", "plate"]].drop_duplicates()
        if "cell_type" in columns and "cell_type" not in wells.columns:
            types = rows.drop_duplicates("plate").set_index("plate")["cell_type"]
            wells = wells.assign(cell_type=wells["plate"].map(types)) if (wells["plate"] != "").all() else wells
        merged = join_wells(reading, sites, wells, plates)
        if "cell_type" in merged.columns and merged["cell_type"].isna().any():
            merged = merged.drop(columns=["cell_type"])
        merged, per_well = reading.chosen(finish_wells(reading, merged)), True
    own = named_own(merged)
    merged[own] = merged[own].fillna("")
    return Rows(merged, channels, "looked for the files of the LoadData table", fields, per_well=per_well)


def _read_table(reading: Reading, path: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """The planes of a table, what its rows say of their wells, and its columns' names by our fields."""
    table = reading.table(path)
    faults = reading.faults[-1]
    channels = {match[1]: column for column in table.columns if (match := _CHANNEL.fullmatch(column))}
    channels = {name: column for name, column in channels.items() if not _ILLUMINATION.match(name)}
    if not channels:
        raise InputError(f"{faults.name} line 1: no column FileName_CHANNEL or URL_CHANNEL; is it a LoadData table?")
    metadata = table[[column for column in table.columns if column.startswith("Metadata_")]]
    columns = find_columns(metadata, {**reading.config.table_columns}, faults.name)
    if "well" not in columns and not {"row", "column"} <= columns.keys():
        raise InputError(f"{faults.name} line 1: no column Metadata_Well, nor Metadata_Row and Metadata_Col")
    if "plate" not in columns:
        raise InputError(f"{faults.name} line 1: no column Metadata_Plate")
    step = {axis: next((c for c in metadata.columns if pattern.fullmatch(c)), None) for axis, pattern in _STEP.items()}
    known = [*table.columns.difference(metadata.columns), *(column for column in step.values() if column)]
    if "site" in columns:
        texts = table[columns["site"]]
        wrong = ~texts.isin([text for text in texts.unique() if re.fullmatch(r"\d{1,6}", text)])
        faults.add(columns["site"], wrong, "expected a whole number")
    rows = describe_wells(reading, table, faults, columns, known).rename(
        columns=lambda c: c.replace(own_column("Metadata_"), own_column(""))
    )
    lines = pd.Index(rows["line"])
    if "site" in columns:
        rows["site"] = table[columns["site"]].reindex(lines).astype(int).to_numpy()
        rows["site"] += int(rows["site"].min() == 0) if len(rows) else 0
    else:
        rows["site"] = rows.groupby(KEY, sort=False).cumcount() + 1
    parts = []
    for name in channels:
        chosen = table.reindex(lines)
        part = rows[["file", "line", *KEY, "site"]].assign(
            channel=name.removeprefix("Orig"), path=_paths(chosen, name).to_numpy()
        )
        frame = next(
            (chosen[c] for c in (f"Frame_{name}", f"Series_{name}") if c in table.columns and (chosen[c] != "").any()),
            None,
        )
        part["index"] = 0 if frame is None else frame.replace("", "0").astype(float).astype(int).to_numpy()
        for axis, column in step.items():
            part[axis] = (
                NO_Z if column is None else chosen[column].replace("", "0").astype(float).astype(int).to_numpy()
            )
        parts.append(part[part["path"] != ""])
    return pd.concat(parts, ignore_index=True), rows, columns


def _paths(table: pd.DataFrame, channel: str) -> pd.Series[str]:
    """The paths of a channel's files: relative to the screen's folder, absolute, or s3://."""
    if f"URL_{channel}" in table.columns:
        return table[f"URL_{channel}"].map(_from_url)
    names = table[f"FileName_{channel}"]
    folders = (
        table[f"PathName_{channel}"] if f"PathName_{channel}" in table.columns else pd.Series("", index=table.index)
    )
    pairs = zip(folders.str.replace("\\", "/", regex=False), names, strict=True)
    return pd.Series([join(_from_url(folder), name) if name else "" for folder, name in pairs], index=table.index)


def _from_url(text: str) -> str:
    """file:// addresses as paths; others as they are."""
    if not text.startswith("file:"):
        return text
    return unquote(urlsplit(text).path)


LOADDATA = Layout("loaddata", "load_data.csv with FileName_CHANNEL and Metadata_ columns", found, read)
