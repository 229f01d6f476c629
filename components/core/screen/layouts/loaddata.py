"""CellProfiler's LoadData tables: FileName_CHANNEL and PathName_CHANNEL, or URL_CHANNEL, and Metadata_ columns, a row a site.

    load_data.csv   or load_data_csv/BATCH/PLATE/load_data.csv, as in JUMP, also below workspace; also .csv.gz and .parquet

Without such a name, a table in the screen's folder is one by its columns, such as CellProfiler's MyExpt_Image.csv. The prefix
`Image_` of columns, and a channel's name behind those of Metadata, are taken away: Image_Metadata_Plate_DAPI is Metadata_Plate.

Perturbations are in a Metadata_ column, or in a plate map beside it: JUMP's barcode_platemap.csv, or any (plate_map.py). Columns of
illumination functions are no images. Source: https://cellprofiler-manual.s3.amazonaws.com/CellProfiler-4.2.6/modules/fileprocessing.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from posixpath import join

import pandas as pd

from components.core.errors import InputError
from components.core.screen.layouts.imaged_wells import join_wells
from components.core.screen.layouts.moved_paths import from_url
from components.core.screen.layouts.plate_map import (
    describe_wells,
    find_columns,
    finish_wells,
    read_plate_map,
)
from components.core.screen.layouts.reading import (
    KEPT,
    KEY,
    Layout,
    Reading,
    Rows,
    are_whole,
    check_agreement,
    is_absent,
    named_own,
    own_column,
    whole_numbers,
)
from components.core.screen.layouts.samplesheet import with_images
from components.core.screen.layouts.stacks import NO_Z, find_files, stack_sites
from components.core.tables import TableFaults

_FILE = re.compile(r"(.*load_?data.*)\.(?:csv(?:\.gz)?|parquet)", re.IGNORECASE)
_CHANNEL = re.compile(r"(?:FileName|URL)_(.+)")
_ILLUMINATION = re.compile(r"Illum|Mask|Outline", re.IGNORECASE)
_TABLE = re.compile(r".+\.csv(\.gz)?", re.IGNORECASE)
_LIKELY = re.compile(r"image", re.IGNORECASE)
_PREFIX = re.compile(r"Image_(?=(?:FileName|PathName|URL|Metadata|Series|Frame)_)")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_STEP = {
    "z": re.compile(r"(?i)(Metadata_)?(Z|ZPlane|Plane|PlaneID)"),
    "t": re.compile(r"(?i)(Metadata_)?(T|TimePoint|Time|TimepointID)"),
}


def found(reading: Reading) -> bool:
    """Whether there are LoadData tables."""
    return bool(_tables(reading))


def _tables(reading: Reading) -> list[str]:
    """The LoadData tables: those in the screen's folder, or in the folders below load_data_csv."""
    named = _in_folders(reading.names) or _in_folders(
        facts.name for facts in reading.source.list_trees(["load_data_csv", "workspace/load_data_csv"])
    )
    if named:
        return named
    tables = [name for name in sorted(reading.names) if _TABLE.fullmatch(name) and name != reading.config.plate_map]
    opened = [name for name in tables if _LIKELY.search(name) or reading.sizes[name] <= KEPT]
    return [name for name in opened if _are_load_data(reading.header(name))]


def _in_folders(paths: Iterable[str]) -> list[str]:
    """The paths of tables that are called so: of each folder all but those of illumination functions; one a name in two forms."""
    folders: dict[str, dict[str, str]] = {}
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        if match := _FILE.fullmatch(name):
            folders.setdefault(folder, {}).setdefault(match[1], path)
    chosen: list[str] = []
    for stems in folders.values():
        plain = [path for stem, path in stems.items() if "illum" not in stem.lower()]
        chosen += plain or stems.values()
    return chosen


def _are_load_data(columns: list[str]) -> bool:
    """Whether a table of these columns, of any name, is of LoadData: files with folders or addresses, plates and wells."""
    names = set(_plain(columns).values())
    folders = any(
        (name.startswith("FileName_") and f"PathName_{name.removeprefix('FileName_')}" in names)
        or name.startswith("URL_")
        for name in names
    )
    metadata = pd.DataFrame(columns=sorted(name for name in names if name.startswith("Metadata_")))
    return folders and {"plate", "well"} <= find_columns(metadata, {}).keys()


def _plain(columns: list[str]) -> dict[str, str]:
    """The columns' names without the prefix Image_ and, of Metadata, without a channel's name where that leaves one of them."""
    plain = {column: column if (short := _PREFIX.sub("", column)) in columns else short for column in columns}
    channels = [match[1] for name in plain.values() if (match := _CHANNEL.fullmatch(name))]
    taken = set(plain.values())
    for column, name in plain.items():
        channel = next((each for each in channels if name.startswith("Metadata_") and name.endswith(f"_{each}")), None)
        short = name.removesuffix(f"_{channel}")
        if channel is not None and short not in taken:
            plain[column] = short
            taken.add(short)
    return plain


def read(reading: Reading) -> Rows:
    """Reads the tables, and the plate map if none of their columns has perturbations."""
    parts = [_read_table(reading, path) for path in _tables(reading)]
    if not parts:
        raise InputError(
            f"{reading.source.address()}: there is no LoadData table: expected load_data.csv, or load_data_csv/*/*/load_data.csv"
        )
    planes = find_files(
        reading, _not_of_the_web(reading, pd.concat([planes for planes, *_ in parts], ignore_index=True))
    )
    rows = pd.concat([rows for _, rows, *_ in parts], ignore_index=True).fillna({"perturbation": ""})
    columns = parts[0][2]
    indexed = any(named for _, _, _, named in parts)
    order = list(dict.fromkeys(planes["channel"]))
    if "perturbation" in columns:
        rows["perturbation"] = (
            rows["perturbation"].astype(object).mask(is_absent(rows["perturbation"].astype(str)), None)
        )
        rows = reading.chosen(finish_wells(reading, rows[rows["role"].notna()]).reset_index(drop=True))
        planes = planes.assign(experiment=planes["experiment"].replace("", "screen"))
        sites, channels = stack_sites(reading, planes, order, indexed)
        merged, fields, per_well = with_images(reading, rows, sites, columns), columns, False
    else:
        sites, channels = stack_sites(reading, planes, order, indexed)
        wells, fields = read_plate_map(reading)
        plates = rows[["experiment", "plate"]].drop_duplicates()
        merged = join_wells(reading, sites, wells, plates)
        if "cell_type" in columns and "cell_type" not in merged.columns:
            check_agreement(reading, rows, columns, ["cell_type"])
            of_well, of_plate = (rows.drop_duplicates(key).set_index(key)["cell_type"] for key in (KEY[1:], ["plate"]))
            found = pd.Series(of_well.reindex(pd.MultiIndex.from_frame(merged[KEY[1:]])).to_numpy(), merged.index)
            found = found.fillna(merged["plate"].map(of_plate))  # of wells without images
            merged = merged.assign(cell_type=found) if found.notna().all() else merged
        merged, per_well = reading.chosen(finish_wells(reading, merged)), True
    own = named_own(merged)
    merged[own] = merged[own].fillna("")
    return Rows(merged, channels, "looked for the files of the LoadData table", fields, per_well=per_well)


def _not_of_the_web(reading: Reading, planes: pd.DataFrame) -> pd.DataFrame:
    """The planes whose files can be read; refuses addresses of the web."""
    web = planes["path"].str.match(_WEB)
    if web.any():
        reading.missing = True
        reading.refuse(
            f"{web.sum()} of {len(planes)} images are at https:// addresses, which are not read: download them, and give their "
            "paths or screen.path_prefixes, or give s3:// addresses",
            (planes["source"][web] + ": " + planes["path"][web]).tolist(),
        )
    return planes[~web]


def _read_table(reading: Reading, path: str) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], bool]:
    """The planes of a table, what its rows say of their wells, its columns' names by our fields, and whether it names pages."""
    table = reading.table(path)
    plain = _plain(list(table.columns))
    if list(plain) != list(plain.values()):
        table = table.rename(columns=plain)
        reading.faults[-1] = TableFaults(reading.faults[-1].name, table, str(table.columns[0]))
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
    pages = {
        name: column
        for name in channels
        for column in (f"Series_{name}", f"Frame_{name}")
        if column in table.columns and not is_absent(table[column]).all()
    }
    numbers = {column: whole_numbers(table, column, faults, absent=0) for column in pages.values()}
    place = [columns[field] for field in ("plate", "well", "row", "column", "site") if field in columns]
    step: dict[str, str] = {}
    for axis, pattern in _STEP.items():
        for column in metadata.columns:
            # A number that a site has one of, such as hours of treatment, is no step.
            whole = pattern.fullmatch(column) is not None and are_whole(table[column])
            if whole and (table.groupby(place)[column].nunique() > 1).any():
                step.setdefault(axis, column)
    numbers |= {column: whole_numbers(table, column, faults, absent=NO_Z) for column in step.values()}
    if "site" in columns:
        numbers[columns["site"]] = whole_numbers(table, columns["site"], faults)
    known = [*table.columns.difference(metadata.columns), *step.values()]
    rows = describe_wells(reading, table, faults, columns, known).rename(
        columns=lambda c: c.replace(own_column("Metadata_"), own_column(""))
    )
    lines = pd.Index(rows["line"])
    if "site" in columns:
        rows["site"] = numbers[columns["site"]].reindex(lines).to_numpy()
        rows["site"] += int(rows["site"].min() == 0) if len(rows) else 0
    else:  # a row a site, but of stacks and series several
        rows["site"] = 1 if step else rows.groupby(KEY, sort=False).cumcount() + 1
    source = faults.name + " line " + lines.astype(str)
    parts = []
    for name in channels:
        chosen = table.reindex(lines)
        part = rows[[*KEY, "site"]].assign(
            channel=name.removeprefix("Orig"), path=_paths(chosen, name).to_numpy(), source=source
        )
        for field, axis_column, absent in (
            ("index", pages.get(name), 0),
            ("z", step.get("z"), NO_Z),
            ("t", step.get("t"), NO_Z),
        ):
            part[field] = absent if axis_column is None else numbers[axis_column].reindex(lines).to_numpy()
        parts.append(part[~is_absent(part["path"])])
    return pd.concat(parts, ignore_index=True), rows, columns, bool(pages)


def _paths(table: pd.DataFrame, channel: str) -> pd.Series[str]:
    """The paths of a channel's files: relative to the screen's folder, absolute, or s3://."""
    urls = table[f"URL_{channel}"].map(from_url) if f"URL_{channel}" in table.columns else None
    if f"FileName_{channel}" not in table.columns:
        assert urls is not None  # a channel is found by one of the two columns
        return urls
    names = table[f"FileName_{channel}"]
    names = names.mask(is_absent(names), "")
    folders = (
        table[f"PathName_{channel}"] if f"PathName_{channel}" in table.columns else pd.Series("", index=table.index)
    )
    pairs = zip(folders.str.replace("\\", "/", regex=False), names, strict=True)
    paths = pd.Series([join(from_url(folder), name) if name else "" for folder, name in pairs], index=table.index)
    if urls is None:
        return paths
    return urls.mask(is_absent(urls) | (urls.str.match(_WEB) & (paths != "")), paths)


LOADDATA = Layout("loaddata", found, read)
