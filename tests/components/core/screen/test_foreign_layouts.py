"""Screens in the forms of other laboratories: the same screen whatever wrote it, and real ones beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.layouts import read_new_plates, read_screen
from components.core.screen.layouts.samplesheet import SCHEMA
from components.core.screen.simulation.layouts import LAYOUTS, SitePlace
from components.core.screen.simulation.plate_design import ImageForm
from components.core.screen.wells import Screen, Site, Well
from tests.tiny_screen import site_table

SCREENS = Path(__file__).resolve().parents[4] / ".." / "shared" / "screens"
CHANNELS = ("DNA", "AGP")
CONFIG = ScreenConfig(cell_types=("HUVEC", "RPE"), channels=CHANNELS)
FORM = ImageForm(CHANNELS, (16, 16), "uint16")


def tiny_table() -> pd.DataFrame:
    """The tiny screen's sites, with plates numbered over the whole campaign."""
    table = site_table()
    return table.assign(plate="BR" + table["experiment"].str[-2:] + "_" + table["cell_type"] + table["plate"])


def write(root: Path, layout: str, table: pd.DataFrame | None = None) -> Path:
    """Writes the tiny screen in a layout, with two channels; images are empty files, which are listed only."""
    table = tiny_table() if table is None else table
    writer = LAYOUTS[layout]  # type: ignore[index]
    root.mkdir()
    writer.tables(root, table, FORM)
    for row in table[list(SitePlace._fields)].itertuples(index=False):
        place = SitePlace(*row)
        for channel, name in enumerate(CHANNELS):
            path = root / (writer.path(place, channel, name) + writer.chunk.format(channel=channel))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def contents(screen: Screen) -> dict[str, tuple[object, ...]]:
    """What a screen says of its wells, without paths."""
    return {
        well.id_code: (
            plate.cell_type,
            plate.labelled,
            well.role,
            well.perturbation,
            [site.site for site in well.sites],
        )
        for plate in screen.plates
        for well in plate.wells
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_makes_the_same_screen(tmp_path: Path, layout: str):
    table = tiny_table()
    screen = read_screen(write(tmp_path / "screen", layout), CONFIG)
    assert screen.channels == CHANNELS
    shown = table["labelled"] | (table["role"] != "treatment")
    expected = {
        f"{row.experiment}_{row.plate}_{row.well}": (row.cell_type, row.labelled, row.role, label, [1, 2])
        for row, label in zip(table.itertuples(), table["perturbation"].astype(object).where(shown, None), strict=True)
    }
    assert contents(screen) == expected
    assert screen.vocabulary.treatments == ("sirna_2", "sirna_7", "sirna_9", "sirna_11", "sirna_30", "sirna_100")
    writer = LAYOUTS[layout]  # type: ignore[index]
    for plate in screen.plates:
        for well in plate.wells:
            for site in well.sites:
                place = SitePlace(plate.experiment, plate.plate, well.well, site.site, plate.labelled)
                paths = [writer.path(place, channel, name) for channel, name in enumerate(CHANNELS)]
                assert [plane.path for (plane,) in site.channels] == paths
    assert screen.warnings == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_plates_of_every_layout_are_read_without_labels(tmp_path: Path, layout: str):
    root = write(tmp_path / "screen", layout)
    plates = read_new_plates(root, ["HUVEC-03"], CONFIG).plates
    assert [plate.name for plate in plates] == ["HUVEC-03 plate BR03_HUVEC1", "HUVEC-03 plate BR03_HUVEC2"]
    assert {(well.perturbation, len(well.sites)) for plate in plates for well in plate.wells} == {(None, 2)}
    with pytest.raises(InputError, match="no experiment 'X'; there are HUVEC-01, HUVEC-02, HUVEC-03, RPE-01"):
        read_new_plates(root, ["X"], CONFIG)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_own_columns_are_carried_by_every_layout(tmp_path: Path, layout: str):
    table = tiny_table()
    table = table.assign(dose=table["well"].map({"B03": "0.5"}).fillna(""), note="x, y")
    screen = read_screen(write(tmp_path / "screen", layout, table), CONFIG)
    assert screen.columns == ("dose", "note")
    found = {well.well: well.extra for well in screen.plates[0].wells}
    assert (found["B03"], found["B04"]) == (("0.5", "x, y"), ("", "x, y"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wells_without_images_are_named_together_or_dropped(tmp_path: Path, layout: str):
    if layout.startswith("omezarr"):
        pytest.skip("its metadata list the images; a missing one is found when the plate is listed")
    root = write(tmp_path / "screen", layout)
    gone = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size == 0][:6]
    for path in gone:
        path.unlink()
    with pytest.raises(InputError, match=r"screen\.missing_images") as caught:
        read_screen(root, CONFIG)
    assert "\n" not in str(caught.value)
    dropped = read_screen(root, CONFIG.model_copy(update={"missing_images": "drop"}))
    lost = (
        contents(read_screen(root, CONFIG, images=False)).keys() - contents(dropped).keys()
        if layout == "kaggle"
        else {1}
    )
    assert 0 < len(lost) <= 6
    assert any("missing_images" in warning or "do not exist" in warning for warning in dropped.warnings)


def only_well(screen: Screen) -> Well:
    (plate,) = screen.plates
    (well,) = plate.wells
    return well


def planes_of(site: Site) -> list[list[tuple[str, int]]]:
    """Of each channel the path and index of its planes."""
    return [[(plane.path, plane.index) for plane in planes] for planes in site.channels]


def on(screen: str) -> Path:
    path = SCREENS / screen
    if not path.is_dir():
        pytest.skip("the real screens are not beside the repository")
    return path.resolve()


def test_harmony(tmp_path: Path):
    config = ScreenConfig(cell_types=("BALL",))
    screen = read_screen(on("harmony"), config)
    assert screen.channels == ("Fluorescein (FITC)",)
    assert (screen.plates[0].plate, screen.columns) == ("Test_Sample_BALL", ("concentration", "unit"))
    well = only_well(screen)
    assert (well.well, well.role, well.perturbation, well.extra) == ("C03", "negative_control", "DMSO", ("0.125", "%"))
    assert [planes_of(site) for site in well.sites] == [
        [[(f"Images/r03c03f0{n}p01-ch1sk1fk1fl1.tiff", 0)]] for n in (1, 2)
    ]


@pytest.fixture
def plate_map(tmp_path: Path) -> Path:
    path = tmp_path / "map.csv"
    path.write_text("well,compound\nb2,DMSO\nB3,aspirin\n")
    return path


@pytest.mark.parametrize(
    ("plate", "changes", "planes"),
    [
        ("9987_Plate_3420", {}, {"B02": [[1]]}),
        ("9987_Plate_3435", {"time_point": 2}, {"B02": [[1, 1]] * 2, "B03": [[1, 1]] * 2}),
        ("9987_Plate_3434", {"z": "max", "missing_images": "drop"}, None),
        ("9987_Plate_3434", {"z": 1, "missing_images": "drop"}, None),
    ],
)
def test_imagexpress(plate: str, changes: dict[str, object], planes, plate_map: Path):
    config = ScreenConfig(cell_types=("HeLa",), plate_map=str(plate_map)).model_copy(update=changes)
    root = on("imagexpress") / plate
    if plate == "9987_Plate_3420":
        plate_map.write_text("well,compound\nB02,DMSO\n")
    screen = read_screen(root, config)
    assert screen.plates[0].plate == plate
    found = {well.well: [[len(p) for p in site.channels] for site in well.sites] for well in screen.plates[0].wells}
    if planes is not None:
        assert found == planes
    names = [plane.path for well in screen.plates[0].wells for s in well.sites for c in s.channels for plane in c]
    assert len(names) == len(set(names))
    assert all((root / name).is_file() for name in names)


def test_a_stack_and_a_series_are_refused_with_what_to_set(plate_map: Path):
    config = ScreenConfig(cell_types=("HeLa",), plate_map=str(plate_map))
    with pytest.raises(InputError, match=r"z-stacks of 3 planes \(0, 1, 2\): set screen\.z to max"):
        read_screen(on("imagexpress") / "9987_Plate_3434", config)
    with pytest.raises(InputError, match=r"2 time points \(1, 2\): set screen\.time_point"):
        read_screen(on("imagexpress") / "9987_Plate_3435", config)


def test_a_plate_map_that_lacks_imaged_wells_is_refused(plate_map: Path):
    plate_map.write_text("well,compound\nB02,DMSO\n")
    config = ScreenConfig(cell_types=("HeLa",), plate_map=str(plate_map), time_point=1)
    with pytest.raises(InputError, match=r"plate map lacks 1 imaged well: .*: 9987_Plate_3435_B03"):
        read_screen(on("imagexpress") / "9987_Plate_3435", config)


def test_cytation_and_phenix_and_ome_zarr(tmp_path: Path):
    table = tmp_path / "map.csv"
    table.write_text(
        "Well;Gene\n" + "".join(f"{well};g{n}\n" for n, well in enumerate(("D6", "D7", "F7", "B7", "H12")))
    )
    config = ScreenConfig(cell_types=("SH",), plate_map=str(table), channels=("GFP", "DAPI"))
    screen = read_screen(on("nf1"), config)
    assert screen.channels == ("GFP", "DAPI")
    assert [well.well for well in screen.plates[0].wells] == ["B07", "D06", "D07", "F07", "H12"]
    ((gfp,), (dapi,)) = screen.plates[0].wells[1].sites[0].channels
    assert (gfp.path, dapi.path) == ("D6_01_2_2_GFP_001.tif", "D6_01_1_2_DAPI_001.tif")

    table.write_text("row\tcolumn\tdrug\nC\t3\taspirin\n")
    config = ScreenConfig(cell_types=("U2OS",), plate_map=str(table))
    well = only_well(read_screen(on("jump_phenix"), config))
    assert [(site.site, len(site.channels)) for site in well.sites] == [(3, 6)]

    table.write_text("well,drug\nB03,aspirin\n")
    with pytest.raises(InputError, match="z-stacks of 3 planes"):
        read_screen(on("omezarr"), config)
    screen = read_screen(on("omezarr"), config.model_copy(update={"z": "max"}))
    assert (screen.plates[0].plate, screen.channels) == ("plate_ones", ("some-label-1", "some-label-2"))
    (site,) = only_well(screen).sites
    image = "plate_ones.zarr/B/03/0"
    assert planes_of(site) == [[(image, 3 * c + z) for z in range(3)] for c in range(2)]
    whole = read_screen(on("omezarr") / "plate_ones.zarr", config.model_copy(update={"z": 2}))
    assert planes_of(only_well(whole).sites[0]) == [[("B/03/0", 1)], [("B/03/0", 4)]]


def test_the_page_has_the_whole_schema_of_the_sample_sheet():
    page = (Path(__file__).parents[4] / "docs" / "your-data.md").read_text()
    assert all(
        f"| `{column.name}` | {'yes' if column.needed else ''} | {column.meaning} |" in page for column in SCHEMA
    )


def test_files_of_several_planes_are_channels_or_stacks_as_configured(tmp_path: Path):
    root = tmp_path / "plate"
    root.mkdir()
    for well in ("A01", "A02"):
        tifffile.imwrite(root / f"{well}_s1.tif", np.zeros((3, 8, 8), np.uint16), photometric="minisblack")
    (root / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    config = ScreenConfig(cell_types=("HeLa",))

    def channels(**changes: object) -> list[list[int]]:
        well = read_screen(root, config.model_copy(update=changes)).plates[0].wells[0]
        return [[plane.index for plane in planes] for planes in well.sites[0].channels]

    with pytest.raises(InputError, match=r"hold 3 planes each, and one was expected: set screen\.z .*A01_s1\.tif"):
        channels()
    assert channels(z="max") == [[0, 1, 2]]
    assert channels(z=2) == [[1]]
    assert channels(channels=("x", "y", "z")) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("name", "well", "site", "channel"),
    [
        ("A02_s1.tif", "A02", 1, 1),
        ("Week1_150607_B02_s3_w107447158-AC92-4844-8462-8FC9E3E3C0D8.tif", "B02", 3, 1),
        ("plate_7_b2_s10_w12.TIF", "B02", 10, 12),
        ("AssayPlate_Greiner_#655090_D04_T0001F012L01A01Z01C02.png", "D04", 12, 2),
        ("MFGTMP_120418120001_B02f00d1.TIF", "B02", 1, 1),
        ("r16c24f09p01-ch5sk1fk1fl1.tiff", "P24", 9, 5),
        ("r02c03f01p01-ch1.tiff", "B03", 1, 1),
    ],
)
def test_names_of_microscopes(tmp_path: Path, name: str, well: str, site: int, channel: int):
    (tmp_path / "P" / "deep").mkdir(parents=True)
    (tmp_path / "P" / name).touch()
    (tmp_path / "P" / name.replace(".", "_thumb.")).touch()
    (tmp_path / "map.csv").write_text(f"well,gene\n{well},a\n")
    (plate,) = read_screen(tmp_path, ScreenConfig(cell_types=("HeLa",))).plates
    assert (plate.plate, [(each.well, [found.site for found in each.sites]) for each in plate.wells]) == (
        "P",
        [(well, [site])],
    )
    assert read_screen(tmp_path, ScreenConfig(cell_types=("HeLa",))).channels == (name_of(name, channel),)


def name_of(name: str, channel: int) -> str:
    """The channel as its file's name has it."""
    return f"{channel:02d}" if f"C{channel:02d}." in name else str(channel)
