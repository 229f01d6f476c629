"""Writes a screen's tables and images in every layout that can be read: the typed table of sites in, files out.

A table has a row a site: experiment, plate, well, site, role, perturbation, cell_type, labelled, then the screen's own columns.
Perturbations of unlabelled treatments are given, since a layout may have a place for them; others leave them empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.core.config import SimulatedLayout
from components.core.screen.plane_header import ImageForm
from components.core.screen.simulation.ome_zarr import CHUNKS, Version, encode_plane, write_plate
from components.core.screen.wells import ROWS, split_well
from components.core.tables import write_table

COLUMNS = ("experiment", "plate", "well", "site", "role", "perturbation", "cell_type", "labelled")
"""The columns that every table has; those behind them are the screen's own."""
_PNG_LEVEL = 1


class SitePlace(NamedTuple):
    """A site of a screen, and whether its experiment is labelled."""

    experiment: str
    plate: str
    well: str
    site: int
    labelled: bool


@dataclass(frozen=True)
class LayoutWriter:
    """One layout.

    `image` is the pattern of an image's path relative to the screen; `tables` writes all other files; `chunk` is the pattern
    of a plane's file below an OME-Zarr image.
    """

    image: str
    tables: Callable[[Path, pd.DataFrame, ImageForm], None]
    chunk: str = ""

    def path(self, place: SitePlace, channel: int, name: str) -> str:
        """The path of a site's image, relative to the screen.

        Args:
            place: the site.
            channel: its position among the channels, from 0.
            name: the channel's name.
        """
        letters, digits = split_well(place.well)
        row = ROWS.index(letters) + 1
        half = "train" if place.labelled else "test"
        values: dict[str, Any] = {"half": half, "row": row, "letters": letters, "column": int(digits), "digits": digits}
        values["name"] = re.sub(r"[^\w-]", "_", name)  # a channel's name is free text
        return self.image.format(**place._asdict(), **values, channel=channel + 1, field=place.site - 1)

    def write_site(
        self, screen: Path, place: SitePlace, channels: Sequence[str], pixels_CHW: NDArray[np.integer]
    ) -> None:
        """Writes the images of a site; folders are created.

        Raises:
            OSError: a file cannot be written.
        """
        for channel, (name, image_HW) in enumerate(zip(channels, pixels_CHW, strict=True)):
            path = self.path(place, channel, name) + self.chunk.format(channel=channel)
            (screen / path).parent.mkdir(parents=True, exist_ok=True)
            (screen / path).write_bytes(encode_plane(image_HW) if self.chunk else _encode(Path(path).suffix, image_HW))


def _encode(suffix: str, image_HW: NDArray[np.integer]) -> bytes:
    """PNG, or TIFF with LZW."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL] if suffix == ".png" else []
    done, data = cv2.imencode(suffix.lower(), image_HW, options)
    assert done
    return data.tobytes()


def own_columns(table: pd.DataFrame) -> list[str]:
    """The names of the screen's own columns."""
    return [str(column) for column in table.columns if column not in COLUMNS]


def id_codes(table: pd.DataFrame) -> pd.Series[str]:
    """EXPERIMENT_PLATE_WELL of each row."""
    return table["experiment"] + "_" + table["plate"] + "_" + table["well"]


def _hide(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the labels of unlabelled treatments."""
    shown = table["labelled"] | (table["role"] != "treatment")
    return table.assign(perturbation=table["perturbation"].where(shown, ""))


def _wells(table: pd.DataFrame) -> pd.DataFrame:
    """The first site of each well, without the labels of unlabelled treatments, and with an id_code."""
    wells = _hide(table).drop_duplicates(["experiment", "plate", "well"]).reset_index(drop=True)
    return wells.assign(id_code=id_codes(wells))


def _write_kaggle(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
    columns = ["id_code", "experiment", "plate", "well", "sirna", "well_type"]
    wells = _wells(table).rename(columns={"perturbation": "sirna", "role": "well_type"})
    own = own_columns(table)
    for split, half in (("train", wells[wells["labelled"]]), ("test", wells[~wells["labelled"]])):
        treated = half["well_type"] == "treatment"
        known = columns[: 5 if split == "train" else 4]
        write_table(screen / f"{split}.csv", half.loc[treated, [*known, *own]])
        write_table(screen / f"{split}_controls.csv", half.loc[~treated, [*columns, *own]])


def _write_rxrx(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
    """The release gives the labels of the test half too."""
    place = id_codes(table)
    columns = {
        "site_id": place + "_" + table["site"].astype(str),
        "well_id": place,
        "cell_type": table["cell_type"],
        "dataset": table["labelled"].map({True: "train", False: "test"}),
        **{name: table[name] for name in ("experiment", "plate", "well", "site")},
        "well_type": table["role"],
        "sirna": "s" + table["perturbation"],  # the manufacturer's number
        "sirna_id": table["perturbation"],
        **{name: table[name] for name in own_columns(table)},
    }
    write_table(screen / "metadata.csv", pd.DataFrame(columns))


def _write_load_data(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
    """CellProfiler's LoadData CSV, and JUMP's plate maps, one for each plate, if their names are barcodes."""
    columns: dict[str, Any] = {}
    files = {name: [Path(path) for path in paths] for name, paths in _paths(LOADDATA, table, form).items()}
    for name, paths in files.items():
        columns[f"FileName_Orig{name}"] = [path.name for path in paths]
        columns[f"PathName_Orig{name}"] = [path.parent.as_posix() for path in paths]
    fields = {"experiment": "Batch", "plate": "Plate", "well": "Well", "site": "Site", "cell_type": "Cell_Line"}
    wells = _wells(table)
    if wells["plate"].nunique() < len(wells.drop_duplicates(["experiment", "plate"])):
        # A barcode names one plate: without barcodes of their own, the wells are described in the table itself.
        fields |= {name: name.capitalize() for name in ("perturbation", "role", *own_columns(table))}
        table = _hide(table)
    columns |= {f"Metadata_{name}": table[column].to_numpy() for column, name in fields.items()}
    write_table(screen / "load_data.csv", pd.DataFrame(columns))
    if "perturbation" in fields:
        return

    types = {"treatment": "trt", "negative_control": "negcon", "positive_control": "poscon"}
    wells["pert_type"] = wells["role"].map(types)
    wells = wells.rename(columns={"well": "well_position", "perturbation": "broad_sample"})
    plates = pd.DataFrame({"Assay_Plate_Barcode": wells["plate"].unique()})
    write_table(screen / "barcode_platemap.csv", plates.assign(Plate_Map_Name=plates["Assay_Plate_Barcode"]))
    (screen / "platemap").mkdir()
    for plate, rows in wells.groupby("plate", sort=False):
        shown = rows[["well_position", "broad_sample", "pert_type", *own_columns(table)]]
        shown.to_csv(screen / "platemap" / f"{plate}.txt", sep="\t", index=False, lineterminator="\n")


def _write_samplesheet(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
    first = ["experiment", "plate", "well", "site", "role", "perturbation", "cell_type"]
    paths = {f"path_{name}": paths for name, paths in _paths(SAMPLESHEET, table, form).items()}
    sheet = _hide(table).assign(**paths)
    write_table(screen / "samplesheet.csv", sheet[[*first, *paths, *own_columns(table)]])


def _write_plate_map(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
    columns = ["experiment", "plate", "well", "role", "perturbation", "cell_type", *own_columns(table)]
    write_table(screen / "platemap.csv", _wells(table)[columns])


def _write_harmony(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
    """A plate map, and each plate's index as Harmony writes it."""
    _write_plate_map(screen, table, form)
    for (experiment, plate), sites in table.groupby(["experiment", "plate"], sort=False):
        root = ElementTree.Element("EvaluationInputData", xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5")
        about = ElementTree.SubElement(ElementTree.SubElement(root, "Plates"), "Plate")
        ElementTree.SubElement(about, "Name").text = str(plate)
        images = ElementTree.SubElement(root, "Images")
        for name, paths in _paths(OPERA_PHENIX, sites, form).items():
            channel = form.channels.index(name) + 1
            for path, well, site in zip(paths, sites["well"], sites["site"], strict=True):
                letters, digits = split_well(well)
                fields = {
                    "URL": Path(path).name, "Row": ROWS.index(letters) + 1, "Col": int(digits), "FieldID": site, "PlaneID": 1,
                    "TimepointID": 0, "ChannelID": channel, "ChannelName": name, "ImageSizeX": form.shape[1],
                    "ImageSizeY": form.shape[0],
                }  # fmt: skip
                image = ElementTree.SubElement(images, "Image", Version="1")
                for tag, value in fields.items():
                    ElementTree.SubElement(image, tag).text = str(value)
        index = screen / str(experiment) / str(plate) / "Images" / "Index.idx.xml"
        index.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(index, encoding="utf-8", xml_declaration=True)


def _write_ome_zarr(version: Version) -> Callable[[Path, pd.DataFrame, ImageForm], None]:
    def write(screen: Path, table: pd.DataFrame, form: ImageForm) -> None:
        _write_plate_map(screen, table, form)
        for (experiment, plate), sites in table.groupby(["experiment", "plate"], sort=False):
            fields = sites.groupby("well", sort=False)["site"]
            wells = [(*split_well(str(well)), [int(site) - 1 for site in numbers]) for well, numbers in fields]
            folder = screen / str(experiment) / f"{plate}.zarr"
            write_plate(folder, version, wells, form.channels, form.shape, np.dtype(form.dtype))

    return write


def _paths(layout: LayoutWriter, table: pd.DataFrame, form: ImageForm) -> dict[str, list[str]]:
    """The paths of all images, by channel, in the order of the table."""
    places = [SitePlace(*row) for row in table[list(SitePlace._fields)].itertuples(index=False)]
    return {name: [layout.path(place, c, name) for place in places] for c, name in enumerate(form.channels)}


_HARMONY_NAME = "r{row:02d}c{column:02d}f{site:02d}p01-ch{channel}sk1fk1fl1.tiff"
_ZARR_IMAGE = "{experiment}/{plate}.zarr/{letters}/{digits}/{field}"
LOADDATA = LayoutWriter("images/{experiment}/{plate}/" + _HARMONY_NAME, _write_load_data)
SAMPLESHEET = LayoutWriter("images/{experiment}/{plate}/{well}_s{site}_{channel}_{name}.tif", _write_samplesheet)
OPERA_PHENIX = LayoutWriter("{experiment}/{plate}/Images/" + _HARMONY_NAME, _write_harmony)
LAYOUTS: Mapping[SimulatedLayout, LayoutWriter] = {
    "kaggle": LayoutWriter("{half}/{experiment}/Plate{plate}/{well}_s{site}_w{channel}.png", _write_kaggle),
    "rxrx": LayoutWriter("images/{experiment}/Plate{plate}/{well}_s{site}_w{channel}.png", _write_rxrx),
    "loaddata": LOADDATA,
    "samplesheet": SAMPLESHEET,
    "imagexpress": LayoutWriter(
        "{experiment}/{plate}/TimePoint_1/{plate}_{well}_s{site}_w{channel}.TIF", _write_plate_map
    ),
    "opera_phenix": OPERA_PHENIX,
    "yokogawa": LayoutWriter(
        "{experiment}/{plate}/{plate}_{well}_T0001F{site:03d}L01A01Z01C{channel:02d}.tif", _write_plate_map
    ),
    "cellworx": LayoutWriter("{experiment}/{plate}/{plate}_{well}_s{site}_w{channel}.tif", _write_plate_map),
    "omezarr_0.4": LayoutWriter(_ZARR_IMAGE, _write_ome_zarr("0.4"), CHUNKS["0.4"]),
    "omezarr_0.5": LayoutWriter(_ZARR_IMAGE, _write_ome_zarr("0.5"), CHUNKS["0.5"]),
}
