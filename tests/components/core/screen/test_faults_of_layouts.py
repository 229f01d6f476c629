"""Tables and images of other laboratories that contradict themselves: refused together, or read as they are meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from components.core.config import FoldsConfig, ScreenConfig
from components.core.errors import InputError
from components.core.screen.folds import screen_folds
from components.core.screen.images import SiteFiles, decode_channel, image_form, plate_files, read_sites
from components.core.screen.inspection import inspect_screen
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import FileFacts, ScreenDirectory
from components.core.screen.wells import Screen
from tests.tiny_screen import write_png

CONFIG = ScreenConfig(cell_types=("HeLa",))
WELLS = ("A01", "A02")


def grey(value: int = 0, shape: tuple[int, ...] = (8, 8)) -> NDArray[np.uint16]:
    return np.full(shape, value, np.uint16)


def image(path: Path, pixels: NDArray[np.generic] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, grey() if pixels is None else pixels, photometric="minisblack")


def load_data(root: Path, rows: list[dict[str, object]], name: str = "load_data.csv") -> None:
    """A LoadData table whose images, all of the same pixels, are written unless a row names a folder of its own."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    usual = {"PathName_DNA": "images", "Metadata_Plate": "P1", "Metadata_gene": "a"}
    table = pd.DataFrame([{**usual, **row} for row in rows])
    table["Metadata_gene"] = np.where(table["Metadata_Well"] == "A01", "a", "b")
    table.to_csv(path, index=False)
    for row in table.itertuples():
        if row.PathName_DNA == "images":
            image(root / "images" / row.FileName_DNA)


def counts(screen: Screen) -> dict[str, list[list[int]]]:
    """Number of planes by well, site and channel."""
    wells = [well for plate in screen.plates for well in plate.wells]
    return {well.well: [[len(planes) for planes in site.channels] for site in well.sites] for well in wells}


def pixels_of(source: ScreenDirectory, screen: Screen) -> dict[str, list[NDArray[np.generic]]]:
    """What packing decodes of the first site of every well, by channel."""
    form = image_form(source, screen, None)
    found: dict[str, list[NDArray[np.generic]]] = {}
    for plate in screen.plates:
        plate_files(source, plate)
        for well in plate.wells:
            site = SiteFiles(well.well, well.sites[0].site, 0, well.sites[0].channels)
            (contents,) = read_sites(source, [site], screen.channels)
            for channel in range(len(screen.channels)):
                out_HW = np.zeros(form.shape, form.dtype)
                decode_channel(source, site, channel, contents, out_HW, screen.channels)
                found.setdefault(f"{plate.plate}_{well.well}", []).append(out_HW)
    return found


def test_planes_of_one_place_are_refused_in_every_layout(tmp_path: Path):
    loaded, sheet, files, plates = (tmp_path / name for name in ("loaded", "sheet", "files", "plates"))
    for batch in ("BATCH1", "BATCH2"):
        rows = [{"Metadata_Well": well, "Metadata_Site": 1, "FileName_DNA": f"{batch}_{well}.tif"} for well in WELLS]
        load_data(loaded, rows, f"load_data_csv/{batch}/P1/load_data.csv")
    with pytest.raises(InputError) as caught:
        read_screen(loaded, CONFIG.model_copy(update={"table_columns": {"perturbation": "Metadata_gene"}}))
    text = str(caught.value)
    parts = ("2 images have the place of another", "P1_A01 site 1, channel DNA", "images/BATCH2_A01.tif")
    assert all(part in text for part in (*parts, "BATCH1/P1/load_data.csv line 2: images/BATCH1_A01.tif"))

    for z in ("", ",z"):
        sheet.mkdir(exist_ok=True)
        line = ",1" if z else ""
        rows_ = [f"P,{well},1,g,{name}{line}" for well, name in (("A01", "a.tif"), ("a1", "b.tif"))]
        (sheet / "samplesheet.csv").write_text(f"plate,well,site,perturbation,path{z}\n" + "\n".join(rows_) + "\n")
        image(sheet / "a.tif")
        image(sheet / "b.tif")
        with pytest.raises(
            InputError, match=r"1 image has the place of another.* line 3: b\.tif and .* line 2: a\.tif"
        ):
            read_screen(sheet, CONFIG.model_copy(update={"z": "max"}))

    for time in ("2024-01-02T03_04_05", "2024-02-02T03_04_05"):
        for well in ("r01c01", "r01c02"):
            image(files / f"P1__{time}-Measurement 1" / "Images" / f"{well}f01p01-ch1sk1fk1fl1.tiff")
    (files / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    with pytest.raises(InputError, match=r"several measurements of one plate: .*P1__2024-01-02T.* and P1__2024-02-02T"):
        read_screen(files, CONFIG)

    for name in ("P1.zarr", "P1.ome.zarr"):
        write_zarr_plate(plates / name)
    (plates / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    with pytest.raises(InputError, match="the place of another"):
        read_screen(plates, CONFIG)


def write_zarr_plate(plate: Path, shapes: tuple[tuple[int, ...], ...] = ((2, 1, 8, 8),) * 2) -> None:
    """A plate of NGFF 0.4 with an image a well, whose planes hold their number."""
    group = zarr.open_group(plate, mode="w", zarr_format=2)
    wells = [{"path": f"A/{n + 1:02d}", "rowIndex": 0, "columnIndex": n} for n in range(len(shapes))]
    group.attrs["plate"] = {"wells": wells, "rows": [{"name": "A"}], "columns": [{"name": "01"}, {"name": "02"}]}
    for well, shape in zip(wells, shapes, strict=True):
        zarr.open_group(plate / well["path"], mode="w", zarr_format=2).attrs["well"] = {"images": [{"path": "0"}]}
        field = zarr.open_group(plate / well["path"] / "0", mode="w", zarr_format=2)
        planes = np.arange(np.prod(shape[:-2]), dtype=np.uint16).reshape(*shape[:-2], 1, 1)
        field.create_array("0", data=np.broadcast_to(planes, shape).copy(), chunks=(1, 1, 8, 8))
        axes = [{"name": name} for name in "czyx"]
        field.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]


@pytest.mark.parametrize("name", ["P1.zarr", "P1"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_screen_that_is_one_zarr_plate(tmp_path: Path, name: str, inside: bool):
    root = tmp_path / "raw" / name
    write_zarr_plate(root)
    ((root if inside else root.parent) / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(root)
    screen = read_screen(source, CONFIG)
    assert [plate.plate for plate in screen.plates] == ["P1"]
    found = pixels_of(source, screen)
    assert {well: [int(each.max()) for each in channels] for well, channels in found.items()} == {
        "P1_A01": [0, 1],
        "P1_A02": [0, 1],
    }
    assert inspect_screen(source, CONFIG).layout == "omezarr"


def test_an_image_of_other_planes_than_the_first_is_refused(tmp_path: Path):
    write_zarr_plate(tmp_path / "P1.zarr", ((2, 3, 8, 8), (3, 2, 8, 8)))
    (tmp_path / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(tmp_path)
    with pytest.raises(InputError, match=r"A/02/0: .*expected planes of axes c 2, z 3, found planes of axes c 3, z 2"):
        pixels_of(source, read_screen(source, CONFIG.model_copy(update={"z": "max"})))

    pages = tmp_path / "pages"
    image(pages / "A01_s1.tif", grey(shape=(3, 8, 8)))
    image(pages / "A02_s1.tif", grey(shape=(4, 8, 8)))
    (pages / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(pages)
    with pytest.raises(InputError, match=r"A02_s1\.tif: .*expected 3 planes, found 4 planes"):
        pixels_of(source, read_screen(source, CONFIG.model_copy(update={"z": "max"})))

    colours = tmp_path / "colours"
    write_png(colours / "A01_s1.png", np.zeros((8, 8), np.uint8))
    write_png(colours / "A02_s1.png", np.zeros((8, 8, 3), np.uint8))
    (colours / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(colours)
    with pytest.raises(InputError, match=r"A02_s1\.png: .*expected 1 plane, found 3 planes"):
        pixels_of(source, read_screen(source, CONFIG))
    assert any("A02_s1.png" in str(finding) for finding in inspect_screen(source, CONFIG).findings if finding.wrong)


@pytest.mark.parametrize(("kind", "axes"), [("ome", "CZYX"), ("ome", "ZCYX"), ("imagej", "ZCYX")])
def test_pages_are_the_channels_and_steps_that_their_description_says(tmp_path: Path, axes: str, kind: str):
    lengths = {"C": 2, "Z": 3}
    pages = np.arange(6, dtype=np.uint16).reshape([lengths[axis] for axis in axes[:2]] + [1, 1])
    names = {"Channel": {"Name": ["DNA", "A&B"]}} if kind == "ome" else {}
    for well in WELLS:
        path = tmp_path / f"{well}_s1.{'ome.' if kind == 'ome' else ''}tif"
        pixels = np.broadcast_to(pages, [*pages.shape[:2], 8, 8]).copy()
        tifffile.imwrite(path, pixels, **{kind: True}, metadata={"axes": axes, **names})
    (tmp_path / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(tmp_path)
    with pytest.raises(InputError, match=r"z-stacks of 3 planes \(1, 2, 3\)"):
        read_screen(source, CONFIG)
    first, second = pages.reshape(pages.shape[:2]).max(axis=axes.index("Z")).tolist()
    screen = read_screen(source, CONFIG.model_copy(update={"z": "max"}))
    assert screen.channels == (("DNA", "A&B") if kind == "ome" else ("1", "2"))
    assert [int(each.max()) for each in pixels_of(source, screen)[f"{tmp_path.name}_A01"]] == [first, second]
    names_of = {"z": "max", "channels": ("A&B", "DNA") if kind == "ome" else ("x", "y")}
    screen = read_screen(source, CONFIG.model_copy(update=names_of))
    expected = [second, first] if kind == "ome" else [first, second]
    assert [int(each.max()) for each in pixels_of(source, screen)[f"{tmp_path.name}_A02"]] == expected


def test_a_stack_of_one_channel_is_seen_and_projected(tmp_path: Path):
    stack = np.arange(3, dtype=np.uint16)[:, None, None] * np.ones((1, 8, 8), np.uint16)
    for well in WELLS:
        image(tmp_path / f"{well}_s1_w1.tif", grey(7))
        image(tmp_path / f"{well}_s1_w2.tif", stack)
    (tmp_path / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(tmp_path)
    with pytest.raises(InputError, match=r"1 of 2 channels hold 3 planes each.*set screen\.z to max.*A01_s1_w2\.tif"):
        read_screen(source, CONFIG)
    for z, expected in (("max", 2), (2, 1)):
        screen = read_screen(source, CONFIG.model_copy(update={"z": z}))
        assert {each[0].max() for each in pixels_of(source, screen).values()} == {7}
        assert {each[1].max() for each in pixels_of(source, screen).values()} == {expected}
    image(tmp_path / "A02_s1_w1.tif", stack)
    with pytest.raises(InputError, match=r"A02_s1_w1\.tif: .*expected 1 plane, found 3 planes.*screen\.z"):
        pixels_of(source, read_screen(source, CONFIG.model_copy(update={"z": "max"})))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_are_no_stack(tmp_path: Path, suffix: str):
    for well in WELLS:
        for wave in ("", "_w1", "_w2"):
            folder = tmp_path / ("waves" if wave else "one") / f"{well}_s1{wave}.{suffix}"
            folder.parent.mkdir(exist_ok=True)
            write_png(folder, np.zeros((8, 8, 3), np.uint8)) if suffix == "png" else tifffile.imwrite(
                folder, np.zeros((8, 8, 3), np.uint8), photometric="rgb"
            )
    for folder, advice in (("one", "set screen.channels to 3 names"), ("waves", "export each channel as grey")):
        (tmp_path / folder / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
        for z in ("error", "max", 1):
            with pytest.raises(InputError, match=rf"hold 3 channels each \(colour pictures\).*: {advice}") as caught:
                read_screen(tmp_path / folder, CONFIG.model_copy(update={"z": z}))
            assert "screen.z" not in str(caught.value)
    screen = read_screen(tmp_path / "one", CONFIG.model_copy(update={"channels": ("r", "g", "b")}))
    assert counts(screen) == {well: [[1, 1, 1]] for well in WELLS}


def test_a_page_of_another_bit_depth_than_the_first_is_refused(tmp_path: Path):
    for well in WELLS:
        with tifffile.TiffWriter(tmp_path / f"{well}_s1.tif") as file:
            for dtype in (np.uint16, np.uint8):
                file.write(np.zeros((8, 8), dtype), photometric="minisblack")
    (tmp_path / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    source = ScreenDirectory(tmp_path)
    with pytest.raises(InputError, match=r"A01_s1\.tif: .*expected 16-bit pixels, found 8-bit"):
        pixels_of(source, read_screen(source, CONFIG.model_copy(update={"z": "max"})))


def test_rows_of_a_stack_without_a_site_column_are_one_site(tmp_path: Path):
    rows = [
        {"Metadata_Well": well, "Metadata_Z": z, "FileName_DNA": f"{well}_{z}.tif"} for well in WELLS for z in (0, 1)
    ]
    load_data(tmp_path, rows)
    with pytest.raises(InputError, match=r"z-stacks of 2 planes \(0, 1\)"):
        read_screen(tmp_path, CONFIG)
    assert counts(read_screen(tmp_path, CONFIG.model_copy(update={"z": "max"}))) == {"A01": [[2]], "A02": [[2]]}
    table = pd.read_csv(tmp_path / "load_data.csv")
    names = {"Metadata_Plate": "plate", "Metadata_Well": "well", "Metadata_gene": "perturbation", "Metadata_Z": "z"}
    sheet = table.rename(columns=names).assign(path="images/" + table["FileName_DNA"])
    (tmp_path / "load_data.csv").unlink()
    sheet[[*names.values(), "path"]].to_csv(tmp_path / "samplesheet.csv", index=False)
    assert counts(read_screen(tmp_path, CONFIG.model_copy(update={"z": "max"}))) == {"A01": [[2]], "A02": [[2]]}
    sheet[[*names.values(), "path"]].assign(z="").to_csv(tmp_path / "samplesheet.csv", index=False)
    assert counts(read_screen(tmp_path, CONFIG)) == {"A01": [[1], [1]], "A02": [[1], [1]]}


def test_the_maximum_leaves_out_a_projection_of_the_microscope_alone(tmp_path: Path):
    numbered, stepped = tmp_path / "numbered", tmp_path / "stepped"
    for z in (0, 1, 2):
        image(numbered / f"r01c01f01p{z:02d}-ch1sk1fk1fl1.tiff", grey(10 - z))
        image(stepped / f"ZStep_{z}" / "A01_s1_w1.tif", grey(10 - z))
    for folder, brightest in ((numbered, 10), (stepped, 9)):
        (folder / "map.csv").write_text("well,gene\nA01,a\n")
        source = ScreenDirectory(folder)
        ((found,),) = pixels_of(source, read_screen(source, CONFIG.model_copy(update={"z": "max"}))).values()
        assert found.max() == brightest
        ((found,),) = pixels_of(source, read_screen(source, CONFIG.model_copy(update={"z": 0}))).values()
        assert found.max() == 10


def test_cell_types_that_share_an_experiment_are_refused_and_the_advice_helps(tmp_path: Path):
    config = ScreenConfig(cell_types=("HeLa", "U2OS"))
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01", "B02"):
            image(tmp_path / "day1" / plate / f"{well}_s1.tif")
    table = pd.DataFrame(
        {"well": ["A01", "A02", "B01", "B02"], "gene": [*"abab"], "cell_line": ["HeLa"] * 2 + ["U2OS"] * 2}
    )
    table.to_csv(tmp_path / "map.csv", index=False)
    with pytest.raises(
        InputError, match=r"several cell types.*experiment, for example day1-HeLa and day1-U2OS: day1: HeLa, U2OS"
    ):
        read_screen(tmp_path, config)
    table.assign(experiment="day1-" + table["cell_line"]).to_csv(tmp_path / "map.csv", index=False)
    screen = read_screen(tmp_path, config)
    found = {
        (plate.experiment, plate.plate): (plate.cell_type, [w.well for w in plate.wells]) for plate in screen.plates
    }
    assert found == {
        (f"day1-{cells}", plate): (cells, wells)
        for cells, wells in (("HeLa", ["A01", "A02"]), ("U2OS", ["B01", "B02"]))
        for plate in ("P1", "P2")
    }
    folds, _ = screen_folds(screen.training_plates, FoldsConfig(count=2))
    assert folds == {"day1-HeLa": (0,), "day1-U2OS": (1,)}


def test_rows_of_a_well_that_disagree_are_refused_also_of_stacks(tmp_path: Path):
    rows = [f"P,A01,1,{gene},a{z}.tif,{z},HeLa" for z, gene in ((1, "g"), (2, "h"))]
    (tmp_path / "samplesheet.csv").write_text(
        "plate,well,site,perturbation,path,z,cell_type\n" + "\n".join(rows) + "\n"
    )
    for z in (1, 2):
        image(tmp_path / f"a{z}.tif")
    with pytest.raises(InputError, match=r"line 3 .*'h', not as in line 2; another row of the well differs"):
        read_screen(tmp_path, CONFIG.model_copy(update={"z": "max"}))


@pytest.mark.parametrize(
    ("column", "values", "own"),
    [
        ("Metadata_Time", ["24h", "24h"], True),
        ("Metadata_Time", ["24", "48"], True),
        ("Metadata_TimePoint", ["", "nan"], True),
        ("Metadata_Site", ["f01", "f01"], False),
        ("Metadata_Site", ["1.0", "1.0"], False),
        ("Frame_DNA", ["nan", "0.0"], False),
        ("Metadata_ZPlane", ["1.0", "1.0"], True),
    ],
)
def test_numbers_as_tables_have_them(tmp_path: Path, column: str, values: list[str], own: bool):
    rows = [
        {"Metadata_Well": well, "FileName_DNA": f"{well}.tif", column: value}
        for well, value in zip(WELLS, values, strict=True)
    ]
    load_data(tmp_path, rows)
    screen = read_screen(tmp_path, CONFIG)
    assert counts(screen) == {"A01": [[1]], "A02": [[1]]}
    assert bool(screen.columns) == own


@pytest.mark.parametrize(
    ("column", "value"), [("Metadata_Site", "left"), ("Metadata_Site", ""), ("Frame_DNA", "first")]
)
def test_numbers_that_are_none_are_named_with_their_line(tmp_path: Path, column: str, value: str):
    rows = [
        {"Metadata_Well": well, "FileName_DNA": f"{well}.tif", column: n}
        for well, n in zip(WELLS, ("1", value), strict=True)
    ]
    load_data(tmp_path, rows)
    with pytest.raises(InputError, match=rf"load_data\.csv line 3 .*{column} is '{value}'; expected a whole number"):
        read_screen(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "there", ["C:\\data\\run 1\\images", "/home/ubuntu/bücket/images", "\\\\server\\share\\images"]
)
def test_paths_of_another_machine(tmp_path: Path, there: str):
    root = tmp_path / "screen"
    rows = [{"Metadata_Well": well, "FileName_DNA": f"{well}.tif", "PathName_DNA": there} for well in WELLS]
    load_data(root, rows)
    old = there.replace("\\", "/").removesuffix("/images")
    with pytest.raises(InputError) as caught:
        read_screen(root, CONFIG)
    assert "2 of 2 image files do not exist" in str(caught.value)
    assert f"set screen.path_prefixes to {{{old}/images: FOLDER}}" in str(caught.value)
    for well in WELLS:
        image(root / "plates" / "images" / f"{well}.tif")
    with pytest.raises(InputError) as caught:
        read_screen(root, CONFIG)
    assert f"all of them are below {root}: set screen.path_prefixes to {{{old}: plates}}" in str(caught.value)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(root / "plates", elsewhere)
    given = there.removesuffix("images").rstrip("\\")
    for new, start in (("plates", "plates"), (f"{elsewhere}/", f"{elsewhere}")):
        screen = read_screen(root, CONFIG.model_copy(update={"path_prefixes": {given: new}}))
        (site,) = screen.plates[0].wells[0].sites
        assert site.channels[0][0].path == f"{start}/images/A01.tif"
    bucket = CONFIG.model_copy(update={"path_prefixes": {given: "s3://bucket/x"}})
    screen = read_screen(root, bucket.model_copy(update={"missing_images": "error"}), images=False)
    assert screen.plates[0].wells[0].sites[0].channels[0][0].path == "s3://bucket/x/images/A01.tif"


def test_plates_whose_files_have_the_same_names_are_found_by_their_folders(tmp_path: Path):
    rows = [
        {
            "Metadata_Plate": plate,
            "Metadata_Well": well,
            "FileName_DNA": f"{well}.tif",
            "PathName_DNA": f"/old/{plate}/Images",
        }
        for plate in ("P1", "P2", "P3")
        for well in WELLS
    ]
    load_data(tmp_path, rows)
    for row in rows:
        image(tmp_path / f"new/{row['Metadata_Plate']}/images/{row['FileName_DNA']}")
    with pytest.raises(InputError, match=r"set screen\.path_prefixes to \{/old: new\}"):
        read_screen(tmp_path, CONFIG)
    image(tmp_path / "again/P2/images/A01.tif")
    image(tmp_path / "again/P2/images/A02.tif")
    with pytest.raises(InputError, match=r"set screen\.path_prefixes to \{/old: FOLDER\}"):
        read_screen(tmp_path, CONFIG)


@pytest.mark.parametrize(("folder", "missing"), [("/old", "drop"), ("s3://bucket/old", "error")])
def test_a_screen_is_not_listed_for_files_that_are_dropped_or_elsewhere(tmp_path: Path, folder: str, missing: str):
    class Unlisted(ScreenDirectory):
        def list_trees(self, folders: object) -> list[FileFacts]:
            raise AssertionError("the whole screen was listed")

    places = {"A01": tmp_path / "images", "A02": folder}
    load_data(
        tmp_path,
        [
            {"Metadata_Well": well, "FileName_DNA": f"{well}.tif", "PathName_DNA": str(place)}
            for well, place in places.items()
        ],
    )
    image(tmp_path / "images/A01.tif")
    config = CONFIG.model_copy(update={"missing_images": missing})
    if missing == "drop":
        assert [well.well for well in read_screen(Unlisted(tmp_path), config).plates[0].wells] == ["A01"]
    else:
        with pytest.raises(InputError, match=r"1 of 2 image files do not exist.*correct the paths"):
            read_screen(Unlisted(tmp_path), config)


def test_cells_of_paths_that_are_empty_or_say_so_are_filled_from_the_other_columns(tmp_path: Path):
    rows = [
        {"Metadata_Well": "A01", "FileName_DNA": "a.tif", "URL_DNA": ""},
        {"Metadata_Well": "A02", "FileName_DNA": "nan", "PathName_DNA": "", "URL_DNA": (tmp_path / "a b.tif").as_uri()},
    ]
    image(tmp_path / "a b.tif")
    load_data(tmp_path, rows)
    paths = [well.sites[0].channels[0][0].path for well in read_screen(tmp_path, CONFIG).plates[0].wells]
    assert paths == ["images/a.tif", f"{tmp_path}/a b.tif"]


def test_roles_that_no_word_is_known_of_are_left_out_and_rows_of_delimiters_are_none(tmp_path: Path):
    for well in (*WELLS, "A03"):
        image(tmp_path / f"{well}_s1.ome.tif")
    (tmp_path / "map.csv").write_text("well;gene;role\nA01;a;\nA02;b;\nA03;c;spare\n;;\n")
    screen = read_screen(tmp_path, CONFIG)
    assert [well.well for well in screen.plates[0].wells] == list(WELLS)
    assert any("role 'spare'" in warning for warning in screen.warnings)
    (tmp_path / "map.csv").write_text("map of May;;\nwell;gene;role\nA01;a;\n")
    with pytest.raises(InputError, match=r"no plate map: map\.csv line 1 has the columns map of May"):
        read_screen(tmp_path, CONFIG)


def test_a_plate_listed_twice_in_barcode_platemap_is_refused(tmp_path: Path):
    (tmp_path / "platemap").mkdir()
    (tmp_path / "platemap" / "M.txt").write_text("well_position\tbroad_sample\nA01\ta\nA02\tb\n")
    (tmp_path / "barcode_platemap.csv").write_text("Assay_Plate_Barcode,Plate_Map_Name\nP1,M\nP1,M\n")
    for well in WELLS:
        image(tmp_path / "P1" / f"{well}_s1.tif")
    with pytest.raises(InputError, match=r"barcode_platemap\.csv line 3 .*appears twice"):
        read_screen(tmp_path, CONFIG)


@pytest.mark.parametrize("cut", range(2, 12))
def test_check_screen_names_a_png_that_is_cut_in_a_chunks_header(tmp_path: Path, cut: int):
    for well in WELLS:
        write_png(tmp_path / f"{well}_s1.png", np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8))
    path = tmp_path / "A02_s1.png"
    path.write_bytes(path.read_bytes()[:-cut])
    (tmp_path / "map.csv").write_text("well,gene\nA01,a\nA02,b\n")
    (finding,) = (each for each in inspect_screen(ScreenDirectory(tmp_path), CONFIG).findings if each.wrong)
    assert "A02_s1.png: " in str(finding)
    assert "the file is truncated" in str(finding)
