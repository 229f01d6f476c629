"""Plate maps: tables of what is in the wells, for layouts whose images do not say it. Also JUMP's barcode_platemap.

A plate map has a row a well: its well (or row and column) and perturbation; where they differ the plate and the experiment; and a
role, a cell type and further columns of the screen's own. Columns are found by the names that laboratories use, or by
screen.table_columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from posixpath import dirname
from typing import Any

import pandas as pd

from components.core.errors import SHOWN, InputError, shortened
from components.core.screen.layouts.control_words import is_empty
from components.core.screen.layouts.matrix_map import read_matrix
from components.core.screen.layouts.reading import (
    KEPT,
    KEY,
    OF_WELL,
    Reading,
    cell_types_of,
    check_agreement,
    check_cell_types,
    check_texts,
    find_roles,
    is_absent,
    name_wells,
    named_own,
    own_columns,
    role_of,
    roles_by_label,
)
from components.core.screen.screen_source import UnreadableError
from components.core.screen.wells import ROWS, well_at
from components.core.tables import TableFaults

_DESTINATIONS = ("destination_well", "dest_well")
"""Columns of liquid handlers' lists, beside the well that was drawn from."""
ALIASES: dict[str, tuple[str, ...]] = {
    "experiment": ("experiment", "batch", "metadata_source"),
    "plate": (
        "plate", "plate_id", "plateid", "barcode", "plate_barcode", "assay_plate_barcode", "plate_name", "destination_plate_name",
        "destination_plate_barcode", "destination_plate", "dest_plate_name", "dest_plate_barcode", "dest_plate",
    ),
    "well": ("well", "well_position", "well_id", "wellid", "well_name", "wellname", "cpd_well_position", *_DESTINATIONS),
    "row": ("row", "well_row", "row_id"),
    "column": ("column", "col", "well_column", "well_col"),
    "site": ("site", "field", "fieldid", "field_id", "fov", "imagenumber_in_well"),
    "role": ("role", "well_type", "welltype", "control_type", "pert_type", "type"),
    "perturbation": (
        "perturbation", "compound", "compound_name", "pert_iname", "drug", "treatment", "sirna", "guide", "gene", "gene_symbol",
        "compound_id", "broad_sample", "broad_id", "jcp2022", "reagent", "sample_name", "sample_id", "label", "phenotype",
    ),
    "cell_type": ("cell_type", "cell_line", "cellline", "celltype", "cell"),
}  # fmt: skip
"""Names of the columns in lower case, the preferred first; before them may be `Metadata_`. Only JUMP's `Metadata_Source` is an
experiment: a source is a vendor elsewhere."""

ONE_EXPERIMENT = "screen"
"""Name of the only experiment where nothing names one."""
TABLE = re.compile(r".+\.((csv|tsv|txt)(\.gz)?|parquet)", re.IGNORECASE)
BARCODES = "barcode_platemap.csv"
_LIKELY = re.compile(r"plate.?map|layout|wells?\b", re.IGNORECASE)
_FOLDERS = ("metadata", "platemaps", "plate_maps", "platemap", "workspace/metadata")
"""Folders in which plate maps are looked for if there is none in the screen's own."""


def find_columns(table: pd.DataFrame, given: dict[str, str], name: str = "") -> dict[str, str]:
    """For each of our fields the table's column that holds it.

    Raises:
        InputError: screen.table_columns names a column that is not there.
    """
    normal = {_normal(column): column for column in reversed(list(table.columns))}
    found = {}
    for field, names in ALIASES.items():
        column = next((normal[alias] for alias in names if alias in normal), None)
        if column is not None:
            found[field] = column
    for field, column in given.items():
        if column in table.columns:
            found[field] = column
        elif field in ("well", "perturbation"):
            raise InputError(f"{name} line 1: column {column} is missing (screen.table_columns.{field})")
    return found


def _normal(column: str) -> str:
    name = re.sub(r"[ .-]+", "_", column.strip().lower())
    return name if name == "metadata_source" else name.removeprefix("metadata_").removeprefix("image_metadata_")


def well_names(table: pd.DataFrame, columns: dict[str, str], faults: TableFaults) -> pd.Series[Any]:
    """The wells of a table in their standard form, from one column or from row and column; records the others."""
    if "well" in columns:
        return name_wells(table[columns["well"]], faults, columns["well"])
    pairs = list(zip(table[columns["row"]], table[columns["column"]], strict=True))
    named = {pair: _well_of(*pair) for pair in dict.fromkeys(pairs)}
    wells = pd.Series([named[pair] for pair in pairs], index=table.index, dtype=object)
    faults.add(
        columns["row"],
        wells.isna(),
        f"with {columns['column']} it is no well: expected a row A-AF or 1-32, a column 1-48",
    )
    return wells


def _well_of(row: str, column: str) -> str | None:
    row, column = (
        re.sub(r"\.0*$", "", text) for text in (row, column)
    )  # pandas adds a point to numbers beside missing ones
    number = int(row) if row.isdecimal() else ROWS.index(row.upper()) + 1 if row.upper() in ROWS else 0
    return well_at(number, int(column)) if column.isdecimal() else None


def describe_wells(
    reading: Reading, table: pd.DataFrame, faults: TableFaults, columns: dict[str, str], known: Sequence[str] = ()
) -> pd.DataFrame:
    """What a table says of its wells: experiment, plate (empty if it has no column), well, role, perturbation, cell_type, own.

    Adds the faults of single fields, whose rows are left out. The role is None in rows of wells that are neither treatment nor
    control.

    Args:
        reading: the screen.
        table: as text.
        faults: of the table.
        columns: for each of our fields the table's column.
        known: further columns that are no columns of the screen's own.
    """
    empty = pd.Series("", index=table.index)
    wells = pd.DataFrame({"file": len(reading.faults) - 1, "line": table.index}, index=table.index)
    for field in ("experiment", "plate"):
        wells[field] = table[columns[field]] if field in columns else ""
        if field in columns:
            faults.require([columns[field]])
            check_texts(table, faults, [columns[field]])
    wells["well"] = well_names(table, columns, faults)
    names = (wells["experiment"] + "_" + wells["plate"] + "_" + wells["well"].fillna("?")).str.replace(
        r"^_+|_(?=_)", "", regex=True
    )
    label: pd.Series[Any] = table[columns["perturbation"]] if "perturbation" in columns else empty
    if "perturbation" in columns:
        check_texts(table, faults, [columns["perturbation"]])
    label = label.astype(object).mask(is_absent(label.astype(str)), None)
    texts = _role_texts(table, columns)
    if texts is None:
        role = roles_by_label(reading, label)
    else:
        treated = is_absent(texts) & label.notna()  # an empty role is that of a treatment, if there is one
        role = find_roles(reading, texts.mask(treated, "treatment"), names, columns["role"])
    nameless = label.isna() & role.isin(["negative_control", "positive_control"])
    wells["role"], wells["perturbation"] = role, label.mask(nameless, role)
    if "cell_type" in columns:
        faults.require([columns["cell_type"]])
        wells["cell_type"] = table[columns["cell_type"]]
        if reading.cell_types is not None:
            check_cell_types(wells["cell_type"], reading.cell_types, faults, columns["cell_type"])
    ours = {*columns.values(), *known, *(column for column in table.columns if _normal(column) in ALIASES["role"])}
    return wells.join(own_columns(table, ours))[~faults.rows()]


def _role_texts(table: pd.DataFrame, columns: dict[str, str]) -> pd.Series[str] | None:
    """The texts of roles; of JUMP's two columns the control's type, where it is given."""
    if "role" not in columns:
        return None
    texts = table[columns["role"]]
    second = next((column for column in table.columns if _normal(column) == "pert_type"), None)
    if second is not None and second != columns["role"]:
        texts = texts.mask(is_absent(texts), table[second])
    if _normal(columns["role"]) != "type":
        return texts
    # It may mean something else, for example the plate's, or that a treatment is a small molecule.
    words = texts[~is_absent(texts)].unique()
    known = any(map(role_of, words)) and all(role_of(word) or is_empty(word) for word in words)
    return texts if known else None


def finish_wells(reading: Reading, wells: pd.DataFrame) -> pd.DataFrame:
    """Adds what needs all tables: the experiment where none is named, cell types by its name, and which are labelled."""
    wells = wells.copy()
    wells["experiment"] = wells["experiment"].mask(wells["experiment"] == "", ONE_EXPERIMENT)
    if "cell_type" not in wells.columns:
        known = reading.cell_types
        types = cell_types_of(reading, wells["experiment"].unique())
        if known is None:
            types = {name: found or "cells" for name, found in types.items()}
        unknown = [name for name, found in types.items() if found is None or (known is not None and found not in known)]
        if unknown:
            reading.refuse(
                "no table says the cell type: set screen.cell_types to one name for all, or add a column cell_type; experiments",
                unknown,
            )
        wells["cell_type"] = wells["experiment"].map(types)
    if not reading.labels:
        wells["perturbation"], wells["labelled"] = None, False
        return wells
    shown = wells["perturbation"].notna() & (wells["role"] == "treatment")
    wells["labelled"] = wells["experiment"].isin(wells["experiment"][shown].unique())
    return wells


def read_plate_map(reading: Reading) -> tuple[pd.DataFrame, dict[str, str]]:
    """The wells of the screen's plate map, or of JUMP's plate maps, and the tables' names of our fields.

    Experiment and plate are empty where the map has no such columns: it holds for all. Of a drawn map `blank` says which wells have
    only blank cells.

    Raises:
        InputError: there is none, or several.
    """
    path = reading.config.plate_map or _find(reading)
    name = reading.source.address(path)
    table = _table(reading, path)
    columns = find_columns(table, reading.config.table_columns, name)
    if path.rpartition("/")[2].lower() == BARCODES or "Plate_Map_Name" in table.columns:
        return _read_jump(reading, path, table)
    if "well" not in columns and not {"row", "column"} <= columns.keys():
        raise InputError(
            f"{name} line 1: no column of wells (well, or row and column) among {', '.join(table.columns)}"
        )
    if "perturbation" not in columns and reading.labels:
        raise InputError(
            f"{name} line 1: no column of perturbations among {', '.join(table.columns)}; set screen.table_columns.perturbation"
        )
    others = [each for each in table.columns if _normal(each) in _DESTINATIONS and each != columns.get("well")]
    if others and "well" in columns and "well" not in reading.config.table_columns:
        reading.warn(
            f"{name} has the columns {columns['well']} and {others[0]}: {columns['well']} is taken as the well of the images "
            "(screen.table_columns.well)"
        )
    wells = describe_wells(reading, table, reading.faults[-1], columns)
    wells["blank"] = wells["line"].isin(table.attrs.get("blank", ()))
    return _a_row_a_well(reading, wells, columns), columns


def _table(reading: Reading, path: str) -> pd.DataFrame:
    """A plate map as a table, also one that is drawn like the plate; its faults are the last of `reading.faults`."""
    name = reading.source.address(path)
    blocks = read_matrix(reading.content(path), name)
    if blocks is None:
        return reading.table(path)
    titles = {number: str(title) for number, title in zip(blocks["block"], blocks["title"], strict=True)}
    fields = ("perturbation", "role", "cell_type")
    if len(titles) == 1:
        table = blocks[["well", "value"]].rename(columns={"value": "perturbation"})
    elif "" in titles.values() or len(set(titles.values())) < len(titles):
        raise InputError(
            f"{name}: {len(titles)} blocks of wells: write above each the name of its plate, or what it says: compound, role"
        )
    elif any(_normal(title) in ALIASES[each] for title in titles.values() for each in fields):
        if wells := [title for title in titles.values() if _normal(title) in ALIASES["well"]]:
            raise InputError(
                f"{name}: a block is titled {wells[0]!r}: write above it what it says, such as compound or dose"
            )
        table = blocks.pivot(index="well", columns="title", values="value").reset_index().fillna("")
    else:
        table = blocks[["title", "well", "value"]].rename(columns={"title": "plate", "value": "perturbation"})
    table = table.set_axis(pd.RangeIndex(1, len(table) + 1, name="line"))
    table.attrs["blank"] = table.index[
        table.drop(columns=["well", "plate"], errors="ignore").apply(is_absent).all(axis=1)
    ].tolist()
    reading.tables.append(path)
    reading.faults.append(TableFaults(f"{name}, of its list of wells", table, "well"))
    return table


def _a_row_a_well(reading: Reading, wells: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The first row of each well; refuses others that say something else of it. Own columns that differ in a well are left out."""
    again = wells.duplicated(KEY)
    if not again.any():
        return wells
    check_agreement(reading, wells, columns, [field for field in OF_WELL if field in wells.columns])
    groups = wells.groupby(KEY, sort=False)
    of_site = [column for column in named_own(wells) if (groups[column].nunique() > 1).any()]
    left = (
        f"; columns that differ in a well are left out: {shortened([each[4:] for each in of_site])}" if of_site else ""
    )
    reading.warn(f"{again.sum()} rows of {reading.faults[-1].name} repeat a well: each is read once{left}")
    return wells[~again].drop(columns=of_site)


def _find(reading: Reading) -> str:
    """The path of the only table beside the images that has wells."""
    tables = sorted(name for name in reading.names if TABLE.fullmatch(name))
    if BARCODES in tables:
        return BARCODES
    if not tables:
        below = sorted(facts.name for facts in reading.source.list_trees(_FOLDERS) if TABLE.fullmatch(facts.name))
        barcodes = [path for path in below if path.rpartition("/")[2] == BARCODES]
        if len(barcodes) == 1:
            return barcodes[0]
        tables = below or _beside_plate(reading)
    candidates, reasons = [], []
    for path in tables:
        if reading.sizes.get(path, 0) > KEPT:
            reasons.append(f"{path} is too large for one")
            continue
        before = len(reading.tables), len(reading.faults)
        columns = {}
        try:
            table = _table(reading, path)
            columns = find_columns(table, reading.config.table_columns, reading.source.address(path))
            twice = [f"{each} twice" for each in table.attrs.get("repeated", ())]
            reasons.append(f"{path} line 1 has the columns {shortened([*twice, *table.columns], 12)}")
        except InputError as error:
            reasons.append(str(error))
        del reading.tables[before[0] :], reading.faults[before[1] :]
        if ("well" in columns or {"row", "column"} <= columns.keys()) and "perturbation" in columns:
            candidates.append(path)
    likely = [path for path in candidates if _LIKELY.search(path)]
    chosen = candidates if len(candidates) == 1 else likely
    if len(chosen) == 1:
        return chosen[0]
    if candidates:
        raise InputError(
            f"{reading.source.address()}: several plate maps, {shortened(candidates)}: set screen.plate_map to one"
        )
    books = sorted(name for name in reading.names if name.lower().endswith((".xlsx", ".xls", ".ods")))
    reasons += [f"save {book} as CSV" for book in books]
    found = f": {' | '.join(reasons[:SHOWN])}" if reasons else ""
    raise InputError(
        f"{reading.source.address()}: there is no plate map{found}; put a table with the columns well and perturbation, and where "
        "they differ experiment, plate and role, beside the images, or set screen.plate_map"
    )


def _beside_plate(reading: Reading) -> list[str]:
    """The tables beside a screen that is a single OME-Zarr plate, whose own folder converters write."""
    if reading.layout != "omezarr" or reading.names.isdisjoint((".zattrs", "zarr.json")):
        return []
    try:
        return sorted(f"../{facts.name}" for facts in reading.source.list_files("..") if TABLE.fullmatch(facts.name))
    except UnreadableError:  # there is no above in a bucket
        return []


def _read_jump(reading: Reading, path: str, barcodes: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """JUMP's plate maps: a table of plates with the names of their maps, one a file; samples may be in external metadata."""
    folder = dirname(path)
    faults = reading.faults[-1]
    for column in ("Assay_Plate_Barcode", "Plate_Map_Name"):
        if column not in barcodes.columns:
            raise InputError(f"{faults.name} line 1: column {column} is missing")
    faults.require(["Assay_Plate_Barcode", "Plate_Map_Name"])
    faults.require_unique("Assay_Plate_Barcode")
    below = {facts.name for facts in reading.source.list_trees([f"{folder}/platemap" if folder else "platemap"])}
    extra = _external(reading, folder)
    parts, columns = [], {}
    for name in dict.fromkeys(barcodes["Plate_Map_Name"]):
        base = f"{folder}/platemap/{name}" if folder else f"platemap/{name}"
        file = next((each for each in (base, *(base + end for end in (".txt", ".tsv", ".csv"))) if each in below), None)
        if file is None:
            wrong = barcodes["Plate_Map_Name"] == name
            faults.add("Plate_Map_Name", wrong, f"there is no plate map {reading.source.address(base)}.txt")
            continue
        table = reading.table(file)
        if extra is not None and extra.columns[0] in table.columns:
            key = extra.columns[0]
            more = [column for column in extra.columns if column == key or column not in table.columns]
            table = table.reset_index().merge(extra[more], on=key, how="left").set_index("line").fillna("")
        columns = find_columns(table, reading.config.table_columns, reading.source.address(file))
        if "well" not in columns or "perturbation" not in columns:
            raise InputError(
                f"{reading.source.address(file)} line 1: expected the columns well_position and broad_sample"
            )
        if "role" not in columns:
            # JUMP's wells of DMSO have no sample; those of others are named so.
            sample = table[columns["perturbation"]].astype(object)
            sample = sample.mask(is_absent(sample.astype(str)), None)
            roles = roles_by_label(reading, sample).mask(sample.isna(), "negative_control")
            table = table.assign(role=roles.fillna("empty"))
            columns = {**columns, "role": "role"}
        wells = describe_wells(reading, table, reading.faults[-1], columns, ["plate_map_name", "role"])
        solvent = table["solvent"] if "solvent" in table.columns else pd.Series("DMSO", index=table.index)
        named = wells["perturbation"].isin(["negative_control"])
        wells["perturbation"] = wells["perturbation"].mask(named, solvent.mask(is_absent(solvent), "DMSO"))
        for plate in barcodes["Assay_Plate_Barcode"][barcodes["Plate_Map_Name"] == name].unique():
            parts.append(wells.assign(plate=plate))
    if not parts:
        faults.check()
        raise InputError(f"{faults.name}: it lists no plate")
    wells = pd.concat(parts, ignore_index=True)
    own = named_own(wells)
    wells[own] = wells[own].fillna("")
    return wells, columns


def _external(reading: Reading, folder: str) -> pd.DataFrame | None:
    """JUMP's external metadata, a row a sample; the first column is the sample. None without."""
    parents = [folder, dirname(folder), dirname(dirname(folder))]
    trees = [f"{parent}/external_metadata".lstrip("/") for parent in dict.fromkeys(parents)]
    files = sorted(facts.name for facts in reading.source.list_trees(trees) if TABLE.fullmatch(facts.name))
    if not files:
        return None
    table = reading.table(files[0])
    key = next((column for column in table.columns if _normal(column) == "broad_sample"), table.columns[0])
    reading.faults.pop()  # its rows are no wells
    return table[[key, *(column for column in table.columns if column != key)]].drop_duplicates(key)
