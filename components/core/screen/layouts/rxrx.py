"""The layout of the rxrx.ai release of RxRx1.

    metadata.csv    well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna_id, a row a site
    images/EXPERIMENT/PlateP/WELL_sSITE_wCHANNEL.png

The column sirna, the manufacturer's number, is not read. The release gives the perturbations of unlabelled treatments too: the
truth that predictions are compared with. They stay unread.
"""

from __future__ import annotations

import re

from components.core.screen.layouts.kaggle import typed
from components.core.screen.layouts.reading import (
    Layout,
    Reading,
    Rows,
    check_texts,
    find_roles,
    is_absent,
    own_columns,
)
from components.core.screen.layouts.well_files import find_sites

TABLE = "metadata.csv"
FIELDS = {"perturbation": "sirna_id", "role": "well_type"}
_KNOWN = (
    "site_id", "well_id", "cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna", "sirna_id",
)  # fmt: skip
COLUMNS = ("well_id", "experiment", "plate", "well", "cell_type", "site", "dataset", "well_type", "sirna_id")
_SITE = re.compile(r"[1-9][0-9]{0,2}")


def found(reading: Reading) -> bool:
    """Whether the table of this layout is there."""
    return TABLE in reading.names and {"well_id", "dataset", "site"} <= set(reading.header(TABLE))


def read(reading: Reading) -> Rows:
    """Reads the table; the labels of unlabelled treatments are not read."""
    of_well = ["dataset", "well_type", *(["sirna_id"] if reading.labels else [])]
    needed = ["well_id", "experiment", "plate", "well", "cell_type", "site", *of_well]
    table = reading.table(TABLE, needed, "well_id")
    faults = reading.faults[-1]
    faults.require(["well_id", "experiment", "plate", "well", "cell_type", "site", "dataset", "well_type"])
    wells = typed(reading, table, faults, "well_id")
    faults.require_one_of(["dataset"], ("train", "test"), "expected train or test")
    other = wells["cell_type"].notna() & (table["cell_type"] != wells["cell_type"])
    by_name = wells["cell_type"][other].map(lambda name: f"expected {name}")
    faults.add("cell_type", other, "the experiment's name begins with another", by_name)
    site = table["site"]
    faults.add("site", ~site.isin([s for s in site.unique() if _SITE.fullmatch(s)]), "expected a whole number from 1")
    faults.add("site", table.duplicated(["well_id", "site"]), "the site appears twice: remove one of the rows")
    wells["role"] = find_roles(reading, table["well_type"], table["well_id"], "well_type")
    wells["labelled"] = table["dataset"] == "train"
    wells["perturbation"] = None
    if reading.labels:
        shown = (table["dataset"] != "test") | (wells["role"] != "treatment")
        missing = shown & wells["role"].notna() & is_absent(table["sirna_id"])
        faults.add("sirna_id", missing, "it is empty: fill it in or remove the row")
        wells["perturbation"] = table["sirna_id"].astype(object).where(shown, None)
        table = table.assign(sirna_id=table["sirna_id"].where(shown, ""))
        check_texts(table, faults, ["sirna_id"])
    first = table.index.to_series().groupby(table["well_id"]).transform("first")
    for field in of_well:
        differs = table[field] != first.map(table[field])
        lines = first[differs].map(lambda line: f"not as in line {line}")
        faults.add(field, differs, "another site of the well differs: correct one of them", lines)
    treated = wells[wells["role"] == "treatment"].drop_duplicates("experiment").set_index("experiment")["labelled"]
    half = wells["experiment"].map(treated)
    advice = "it has controls but no treatment well; add its treatments or remove its controls"
    faults.add("experiment", half.isna() & wells["role"].notna(), advice)
    odd = half.notna() & (half != wells["labelled"])
    for mine, name, opposite in ((True, "train", "test"), (False, "test", "train")):
        advice = (
            f"it is in the {name} half of the screen, but its treatments are in the {opposite} half; an experiment is either "
            "labelled or not"
        )
        faults.add("experiment", odd & (wells["labelled"] == mine), advice)
    own = own_columns(table, _KNOWN)
    good = ~faults.rows() & wells["role"].notna() & ~table["well_id"].duplicated()
    wells = reading.chosen(wells.join(own)[good].reset_index(drop=True))
    folders = "images/" + wells["experiment"] + "/Plate" + wells["plate"]
    sites, channels = find_sites(reading, wells, folders)
    looked_for = "looked for WELL_sSITE_wCHANNEL.png, .tif or .jpg in images/EXPERIMENT/PlateP"
    return Rows(sites, channels, looked_for, {**FIELDS, "id_code": "well_id"}, per_well=True, strict=True)


RXRX = Layout("rxrx", found, read)
