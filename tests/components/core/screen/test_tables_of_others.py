"""LoadData tables, and tables that are called like another layout's, as other laboratories have them."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.inspection import inspect_screen
from components.core.screen.layouts import loaddata, read_screen
from components.core.screen.screen_source import ScreenDirectory
from tests.components.core.screen.test_faults_of_layouts import image

CONFIG = ScreenConfig(cell_types=("HeLa",))
WELLS = ("A01", "A02", "A03")
PLAIN = "FileName_DAPI,PathName_DAPI,Metadata_Plate,Metadata_Well,Metadata_Compound"
PREFIXED = (
    "Image_FileName_DAPI,Image_PathName_DAPI,Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,Image_Metadata_Compound"
)


def write(root: Path, name: str, head: str, more: str = "") -> None:
    """A table of three wells of plate P1, and their images."""
    rows = [f"{well}.tif,raw,P1,{well},{label}{more}" for well, label in zip(WELLS, ("DMSO", "x", "y"), strict=True)]
    content = "\n".join([head, *rows, ""]).encode()
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for well in WELLS:
        image(root / "raw" / f"{well}.tif")


@pytest.mark.parametrize(
    ("name", "head", "more"),
    [
        ("load_data.csv", PREFIXED, ""),
        ("load_data.csv.gz", PLAIN, ""),
        ("load_data.csv", PLAIN + ",Image_Metadata_Well", ",Q99"),
        ("workspace/load_data_csv/B/P1/load_data.csv.gz", PLAIN, ""),
        ("BBBC021_v1_image.csv", PREFIXED, ""),
        ("MyExpt_Image.csv", PLAIN + ",Count_Nuclei", ",5"),
        ("load_data.csv", PLAIN + ",URL_DAPI", ",https://x.org/a.tif"),
    ],
)
def test_load_data_of_any_name_and_prefix(tmp_path: Path, name: str, head: str, more: str):
    write(tmp_path, name, head, more)
    found = inspect_screen(ScreenDirectory(tmp_path), CONFIG)
    assert (found.layout, found.wrong) == ("loaddata", False), found.findings
    assert found.screen is not None
    (plate,) = found.screen.plates
    assert plate.plate == "P1"
    assert {well.well: (well.role, well.perturbation) for well in plate.wells} == {
        "A01": ("negative_control", "DMSO"),
        "A02": ("treatment", "x"),
        "A03": ("treatment", "y"),
    }
    assert [well.sites[0].channels[0][0].path for well in plate.wells] == [f"raw/{well}.tif" for well in WELLS]
    assert found.screen.columns == ()


def test_a_field_of_a_prefixed_column_is_named_with_its_value(tmp_path: Path):
    write(tmp_path, "load_data.csv", PREFIXED)
    path = tmp_path / "load_data.csv"
    path.write_text(path.read_text().replace(",A02,", ",Q99,"))
    with pytest.raises(InputError, match=r"load_data\.csv line 3 .*Metadata_Well is 'Q99'"):
        read_screen(tmp_path, CONFIG)


def test_addresses_of_the_web_and_a_series_are_refused_once(tmp_path: Path):
    table = "URL_DAPI,Metadata_Plate,Metadata_Well,Metadata_Compound\nhttps://x.org/a.tif,P1,A01,x\nhttps://x.org/b.tif,P1,A02,y\n"
    (tmp_path / "load_data.csv").write_text(table)
    (wrong,) = (each for each in inspect_screen(ScreenDirectory(tmp_path), CONFIG).findings if each.wrong)
    assert "s3://" in str(wrong)

    series = tmp_path / "series"
    write(series, "load_data.csv", PLAIN + ",Metadata_T", ",0")
    path = series / "load_data.csv"
    more = "A01.tif,raw,P1,A01,DMSO,1\n"
    path.write_text(path.read_text().replace("A03,y,0", "A03,y,1") + more.replace("A01.tif", "A02.tif"))
    (wrong,) = (each for each in inspect_screen(ScreenDirectory(series), CONFIG).findings if each.wrong)
    assert "screen.time_point" in str(wrong)


def test_tables_called_like_rxrx1s_are_passed_over_and_said(tmp_path: Path):
    for well in WELLS:
        image(tmp_path / "images" / "E-1" / "Plate1" / f"{well}_s1_w1.tif")
    (tmp_path / "train.csv").write_text("Id,Target\nx,0\n")
    with pytest.raises(InputError, match=r"train\.csv is not of layout kaggle.*screen\.layout"):
        read_screen(tmp_path, CONFIG)
    rows = [
        f"E-1_1_{well}_{site},E-1_1_{well},HeLa,E-1,1,{well},{site},{well.lower()}" for well in WELLS for site in (1, 2)
    ]
    text = "\n".join(["site_id,well_id,cell_type,experiment,plate,well,site,treatment", *rows, ""])
    (tmp_path / "metadata.csv").write_text(text)
    screen = read_screen(tmp_path, CONFIG)
    (plate,) = screen.plates
    assert (plate.experiment, plate.plate) == ("E-1", "Plate1")
    assert [well.perturbation for well in plate.wells] == ["a01", "a02", "a03"]
    assert any("metadata.csv is not of layout rxrx" in warning for warning in screen.warnings)


def test_relative_paths_of_another_tree_have_their_prefix_named(tmp_path: Path):
    write(tmp_path, "load_data.csv", PLAIN)
    path = tmp_path / "load_data.csv"
    path.write_text(path.read_text().replace(",raw,", ",Week1/raw,"))
    with pytest.raises(InputError, match=r"set screen\.path_prefixes to \{Week1: \.\}"):
        read_screen(tmp_path, CONFIG)
    screen = read_screen(tmp_path, CONFIG.model_copy(update={"path_prefixes": {"Week1": "."}}))
    assert screen.plates[0].wells[0].sites[0].channels[0][0].path == "raw/A01.tif"


def test_all_load_data_tables_of_a_folder_are_read(tmp_path: Path):
    names = ("P1_load_data.csv", "P1_load_data.csv.gz", "P2_load_data.csv", "P2_load_data_with_illum.csv", "notes.csv")
    for folder in ("load_data_csv/B", "load_data_csv/C"):
        for name in names:
            write(tmp_path, f"{folder}/{name}", PLAIN)
            plate = name[:2] + folder[-1]
            if not name.endswith(".gz"):
                path = tmp_path / folder / name
                path.write_text(path.read_text().replace(",P1,", f",{plate},"))
    (tmp_path / "load_data_csv" / "B" / "notes.csv").write_text("no,table\nof,images\n")
    screen = read_screen(tmp_path, CONFIG)
    assert {plate.plate for plate in screen.plates} == {"P1B", "P2B", "P1C", "P2C"}
    assert len(screen.tables) == 4


class Counted(ScreenDirectory):
    """Counts how often each file is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        self.reads.update(paths)
        return super().read_many(paths)


def test_tables_are_read_once_and_large_ones_of_other_names_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "MyExpt_Image.csv", PLAIN.replace("Compound", "Notes"))
    (tmp_path / "Cells.csv").write_text("ImageNumber,AreaShape_Area\n" + "1,2\n" * 500)
    (tmp_path / "map.csv").write_text("well,compound\nA01,DMSO\nA02,x\nA03,y\n")
    source = Counted(tmp_path)
    monkeypatch.setattr(loaddata, "KEPT", 1000)
    monkeypatch.setattr("components.core.screen.layouts.plate_map.KEPT", 1000)
    assert len(read_screen(source, CONFIG).plates[0].wells) == 3
    assert {name: n for name, n in source.reads.items() if name.endswith(".csv")} == {
        "MyExpt_Image.csv": 1,
        "map.csv": 1,
    }


@pytest.mark.parametrize("name", ["samplesheet.csv", "samplesheet.csv.gz"])
def test_a_sample_sheet_beside_a_train_table_of_machine_learning(tmp_path: Path, name: str):
    write(tmp_path, name, "path,folder,plate,well,perturbation")
    path = tmp_path / name
    content = (gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()).replace(
        b".tif,raw", b".tif,"
    )
    content = content.replace(b"A0", b"raw/A0", 1).replace(b"\nA0", b"\nraw/A0")
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "train.csv").write_text("image,plate,well,label\na.png,P1,A01,0\n")
    found = inspect_screen(ScreenDirectory(tmp_path), CONFIG)
    assert (found.layout, found.wrong) == ("samplesheet", False), found.findings
    (tmp_path / "train.csv").write_text("id_code,plate,well,label\na.png,P1,A01,0\n")
    with pytest.raises(InputError, match=r"samplesheet.*screen\.layout"):
        read_screen(tmp_path, CONFIG)
