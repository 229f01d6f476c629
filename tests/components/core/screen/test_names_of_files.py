"""What names of files and folders say, as microscopes, file servers and people write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.inspection import inspect_screen
from components.core.screen.layouts import read_screen
from components.core.screen.packing import pack_plates
from components.core.screen.screen_source import ScreenBucket, ScreenDirectory
from components.core.screen.wells import Screen
from components.core.storage.object_store import ObjectStore
from tests.components.core.screen.built_plates import packing_of
from tests.tiny_screen import MemoryStore

MAP = "well,compound\nA01,DMSO\nA02,taxol\nB01,ALLN\n"
CONFIG = ScreenConfig(cell_types=("U2OS",))
HARMONY = '<Entry ChannelID="{}"><ChannelName>{}</ChannelName></Entry>'


def write(root: Path, names: Sequence[str]) -> Path:
    """A screen of small images of these names, each of other pixels, and a plate map."""
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / name, np.full((8, 8), n + 1, np.uint16))
    (root / "map.csv").write_text(MAP)
    return root


def wells(*forms: str) -> list[str]:
    """Names of the map's three wells; a form's {w}, {r} and {c} are well, row and column."""
    return [
        form.format(w=f"{'AB'[r - 1]}0{c}", r=r, c=c, L="AB"[r - 1])
        for form in forms
        for r, c in ((1, 1), (1, 2), (2, 1))
    ]


def plates(screen: Screen) -> dict[str, str]:
    return {plate.plate: plate.experiment for plate in screen.plates}


def paths(screen: Screen) -> dict[tuple[str, str, int], list[str]]:
    """Paths of each site's channels."""
    found = {}
    for plate in screen.plates:
        for well in plate.wells:
            for site in well.sites:
                found[plate.plate, well.well, site.site] = [planes[0].path for planes in site.channels]
    return found


@pytest.mark.parametrize(
    ("forms", "channels", "sites"),
    [
        (
            ["P/{L} - 0{c}(fld 2 wv DAPI - DAPI).tif", "P/{L} - 0{c}(fld 2 wv UV - Cy5).tif"],
            ("DAPI - DAPI", "UV - Cy5"),
            2,
        ),
        (["P/00{r}00{c}-3-001001001.tif", "P/00{r}00{c}-3-001001002.tif"], ("001", "002"), 3),
        (["P/Well {L}00{c}/DAPI - n000000.tif", "P/Well {L}00{c}/FITC - n000000.tif"], ("DAPI", "FITC"), 1),
        (["P/VID1_{L}{c}_4_00d00h00m.tif"], ("1",), 4),
        (["P/VID1_{L}{c}_4_2021y08m06d_11h39m.tif"], ("1",), 4),
        (
            ["P/Images/r0{r}c0{c}f05p01rc1-ch1sk1fk1fl1.tiff", "P/Images/r0{r}c0{c}f05p01rc2-ch1sk1fk1fl1.tiff"],
            ("1", "2-1"),
            5,
        ),
        (["P/{w}_dapi.tif", "P/{w}_actin.tif"], ("actin", "dapi"), 1),
        (["P/{w}_s2_dapi.tif"], ("dapi",), 2),
        (["P/{w}/x_{w}_s2_w1.tif"], ("1",), 2),
    ],
)
def test_names_of_other_microscopes(tmp_path: Path, forms: list[str], channels: tuple[str, ...], sites: int):
    screen = read_screen(write(tmp_path, wells(*forms)), CONFIG)
    assert (screen.channels, plates(screen)) == (channels, {"P": "screen"})
    expected = set(wells(*forms))
    assert {key[1:] for key in paths(screen)} == {(well, sites) for well in ("A01", "A02", "B01")}
    assert {path for each in paths(screen).values() for path in each} == expected


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        (["HTS_P1/2021-05-05/101/TimePoint_1/HTS_P1_{w}_s1_w1.tif", "HTS_P2/2021-05-06/102/TimePoint_1/HTS_P2_{w}_s1_w1.tif"],
         {"HTS_P1": "screen", "HTS_P2": "screen"}),
        (["B1/2021-05-05/101/P1_{w}_s1_w1.tif", "B1/2021-05-05/102/P2_{w}_s1_w1.tif"], {"P1": "B1", "P2": "B1"}),
        ([f"20210301T1{n}0000_P{n}/G_#7/G_#7_{{w}}_T0001F001L01A01Z01C01.tif" for n in (1, 2)],
         {"P1": "screen", "P2": "screen"}),
        (["B1/2201/x_{w}_s1_w1.tif", "B2/2202/x_{w}_s1_w1.tif"], {"2201": "B1", "2202": "B2"}),
    ],
)  # fmt: skip
def test_names_of_plates_and_experiments(tmp_path: Path, forms: list[str], expected: dict[str, str]):
    assert plates(read_screen(write(tmp_path, wells(*forms)), CONFIG)) == expected


@pytest.mark.parametrize(
    ("forms", "pattern", "expected"),
    [
        (["E/P1/w{w}/s7.tif"], r"(?P<plate>P\d)/w(?P<well>\w\d\d)/(?P<site>s\d)", {("P1", "E", 7)}),
        (["E/a/P1/{w}.tif", "E/b/P2/{w}.tif"], r"(?P<plate>P\d)/(?P<well>\w\d\d)", {("P1", "a", 1), ("P2", "b", 1)}),
        (["E/s2/P1_{w}.tif"], r"(?P<site>s\d)/(?P<plate>P\d)_(?P<well>\w\d\d)", {("P1", "E", 2)}),
        (
            ["E/P1/{w}_left.tif", "E/P1/{w}_right.tif"],
            r"(?P<well>\w\d\d)_(?P<site>[a-z]+)",
            {("P1", "E", 1), ("P1", "E", 2)},
        ),
        (
            ["P1/{w}_00d00h00m.tif", "P1/{w}_00d12h00m.tif"],
            r"(?P<well>\w\d\d)_(?P<t>\d\dd\d\dh\d\dm)",
            {("P1", "screen", 1)},
        ),
    ],
)
def test_own_patterns_may_say_sites_and_times_in_words(
    tmp_path: Path, forms: list[str], pattern: str, expected: set[tuple[str, str, int]]
):
    config = CONFIG.model_copy(update={"pattern": pattern, "time_point": 2 if "(?P<t>" in pattern else None})
    screen = read_screen(write(tmp_path, wells(*forms)), config)
    found = {
        (plate.plate, plate.experiment, site.site)
        for plate in screen.plates
        for well in plate.wells
        for site in well.sites
    }
    assert found == expected
    if config.time_point:
        assert all("12h" in path for each in paths(screen).values() for path in each)


def test_numbers_too_long_for_a_table_are_counted(tmp_path: Path):
    long = ("123456789012345678901", "123456789012345678905")
    screen = read_screen(write(tmp_path, wells(*(f"P1/x_{{w}}_s{site}_w1.tif" for site in long))), CONFIG)
    assert paths(screen)["P1", "A01", 2] == [f"P1/x_A01_s{long[1]}_w1.tif"]
    assert any(f"sites are counted: 1 is {long[0]}" in text for text in screen.warnings)
    zeros = write(tmp_path / "b", wells("P1/x_{w}_s000000000000007_w1.tif"))
    assert ("P1", "A01", 7) in paths(read_screen(zeros, CONFIG))


def test_the_names_of_channels_are_read_once_for_the_folders_of_all_wells(tmp_path: Path):
    class Counting(ScreenDirectory):
        def read_many(self, paths: Sequence[str]) -> list[bytes]:
            read.extend(paths)
            return super().read_many(paths)

    read: list[str] = []
    root = write(tmp_path, wells("P1/{w}/x_{w}_s1_w1.tif"))
    (root / "P1/x.HTD").write_text('"WaveName1", "DAPI"')
    assert read_screen(Counting(root), CONFIG).channels == ("DAPI",)
    assert read.count("P1/x.HTD") == 1


@pytest.mark.parametrize("kind", ["Index.xml", "x.HTD"])
def test_numbers_of_channels_mean_what_each_plate_says(tmp_path: Path, kind: str):
    index = kind == "Index.xml"
    form = "P{p}/r0{r}c0{c}f01p01-ch{n}sk1fk1fl1.tiff" if index else "P{p}/x_{w}_s1_w{n}.tif"
    forms = [form.replace("{p}", p).replace("{n}", n) for p in "123" for n in "12"]
    root = write(tmp_path, wells(*forms))

    def name(plate: str, *names: str) -> None:
        one = HARMONY if index else '"WaveName{}", "{}"\n'
        text = "".join(one.format(n, name) for n, name in enumerate(names, 1))
        (root / plate / kind).write_bytes(text.encode("utf-8" if index else "cp1252"))

    for plate, names in (("P1", ("DNA", "ER µ")), ("P2", ("ER µ", "dna")), ("P3", ("DNA", "ER µ"))):
        name(plate, *names)
    screen = read_screen(root, CONFIG)
    assert screen.channels == ("DNA", "ER µ")
    for (plate, _, _), (dna, _) in paths(screen).items():
        assert ("ch2" in dna or "w2" in dna) == (plate == "P2")
    renamed = read_screen(root, CONFIG.model_copy(update={"channels": ("Hoechst", "ConA")}))
    assert renamed.channels == ("Hoechst", "ConA")
    assert paths(renamed) == paths(screen)
    name("P2", "DNA", "Mito")
    with pytest.raises(InputError, match=r"channels of plates have other names.*P2: 1 DNA, 2 Mito"):
        read_screen(root, CONFIG)
    assert read_screen(root, CONFIG.model_copy(update={"channels": ("1", "2")})).channels == ("1", "2")


@pytest.mark.parametrize(
    "batches", [("2021_04_26_Batch1", "2020_11_04_Batch2"), ("Week1", "screen-rep1"), ("a-1", "a-2")]
)
def test_words_and_dates_of_batches_are_no_cell_types(tmp_path: Path, batches: tuple[str, str]):
    root = write(tmp_path, wells(*(f"{batch}/P{n}/x_{{w}}_s1_w1.tif" for n, batch in enumerate(batches))))
    assert inspect_screen(ScreenDirectory(root), ScreenConfig(), known_cells=False).summary["cell_types"] == ["cells"]
    named = ScreenConfig(cell_types=tuple({batch.partition("-")[0] for batch in batches}))
    types = {plate.experiment: plate.cell_type for plate in read_screen(root, named).plates}
    assert types == {batch: batch.partition("-")[0] for batch in batches}


@pytest.mark.parametrize(
    "folders",
    [
        ("P1", "corrected/P1"),
        ("raw/P1", "backup/raw/P1"),
        ("raw/P1", "illum_corrected/P1"),
        ("B/P1", "B/P1_mip"),
        ("B/P1/TIFF", "B/P1/JPEG"),
        ("B/P1", "B_corrected/P1"),
        ("B/P1", "B/P1 - Copy"),
        ("raw", "corrected"),
        ("B/raw", "B/illum_corr"),
        (".", "corrected"),
    ],
)
def test_derived_copies_of_a_plate_are_refused(tmp_path: Path, folders: tuple[str, str]):
    root = write(tmp_path, wells(*(f"{folder}/x_{{w}}_s1_w1.tif" for folder in folders)))
    with pytest.raises(InputError, match="copies of one plate"):
        read_screen(root, CONFIG)
    wanted = rf"^{folders[0].lstrip('.')}/?\w_(?P<well>\w\d\d)"
    assert len(read_screen(root, CONFIG.model_copy(update={"pattern": wanted})).plates) == 1


@pytest.mark.parametrize(
    ("folders", "doubtful"),
    [
        (("E1/P1", "E2/P1"), False),
        (("ProjectA/P1", "ProjectB/P1"), False),
        (("P_Segment1", "P_Segment2"), False),
        (("Illumina1/P1", "Illumina2/P1"), False),
        (("Flat_1/P", "Flat_2/P"), False),
        (("Labelled/P", "P"), True),
        (("b1/P1", "b1/repeat/P1"), True),
        (("E1/20231", "E2/20231"), True),
    ],
)
def test_plates_of_ordinary_names_are_no_copies(tmp_path: Path, folders: tuple[str, str], doubtful: bool):
    screen = read_screen(write(tmp_path, wells(*(f"{folder}/x_{{w}}_s1_w1.tif" for folder in folders))), CONFIG)
    assert len(screen.plates) == 2
    assert any("are they copies" in text for text in screen.warnings) == doubtful


def test_a_pattern_says_that_what_looks_like_a_copy_is_a_plate(tmp_path: Path):
    root = write(tmp_path, wells("E/P1/x_{w}_s1_w1.tif", "E/P1_max/x_{w}_s1_w1.tif"))
    with pytest.raises(InputError, match=r"screen\.pattern with the groups experiment and plate"):
        read_screen(root, CONFIG)
    pattern = r"(?P<experiment>\w+)/(?P<plate>\w+)/x_(?P<well>\w\d\d)_s1"
    screen = read_screen(root, CONFIG.model_copy(update={"pattern": pattern}))
    assert plates(screen) == {"P1": "E", "P1_max": "E"}
    assert any("copies of one plate" in text for text in screen.warnings)


def test_what_systems_leave_among_images_is_passed_over(tmp_path: Path):
    clutter = [f"P1/{name}" for name in ("._x_A01_s1_w1.tif", "@eaDir/x_A01_s1_w1.tif", "thumbs/x_A01_s1_w1.tif")]
    clutter += [f"{name}/P1/x_A01_s1_w1.tif" for name in (".snapshot", "__MACOSX", "#recycle")]
    root = write(tmp_path, [*wells("P1/x_{w}_s1_w1.tif"), *clutter])
    for source in (ScreenDirectory(root), ScreenBucket(ObjectStore(root))):
        screen = read_screen(source, CONFIG)
        assert {path for each in paths(screen).values() for path in each} == set(wells("P1/x_{w}_s1_w1.tif"))
        assert len(screen.plates) == 1


def test_a_folder_that_loses_all_its_images_is_refused(tmp_path: Path):
    root = write(tmp_path, [*wells("P1/x_{w}_s1_w1.tif", "P2/Images/r0{r}c0{c}f01p01-ch1.tiff")[:5], "overview.png"])
    (root / "overview.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"other names than the rest.*P2/Images: 2 such as r01c01f01p01-ch1\.tiff"):
        read_screen(root, CONFIG)
    assert len(read_screen(root, CONFIG.model_copy(update={"pattern": "imagexpress"})).plates) == 1
    few = write(tmp_path / "c", [*wells("raw/Images/r0{r}c0{c}f01p01-ch1.tiff"), "preview/A01.png"])
    with pytest.raises(InputError, match=r"other names than the rest.*preview: 1 such as A01\.png"):
        read_screen(few, CONFIG)
    masks = write(tmp_path / "b", wells("P1/x_{w}_s1_w1.tif", "masks/P1/{w}-mask.tif"))
    assert len(read_screen(masks, CONFIG).plates) == 1


@pytest.mark.parametrize(
    ("forms", "made", "channels", "sites"),
    [
        (["P1/{w}_s1_w1.tif", "P1/{w}_s1_w2.tif"], ["P1/{w}_s1_mask.tif"], ("1", "2"), 1),
        (["P1/{w}_s1.tif", "P1/{w}_s2.tif"], ["P1/{w}_overlay.tif"], ("1",), 2),
        (["P1/{w}_s1_w1.tif"], ["P1/segmentation/{w}_s1_cells.tif", "P1/segmentation/{w}_s1_nuclei.tif"], ("1",), 1),
        (["P1/{w}_s1_w1.tif"], ["P1/{w}_s1_cells.tif", "P1/{w}_s1_nuclei.tif", "P1/{w}_s1_rim.tif"], ("1",), 1),
        (["P1/{w}_s1.tif"], ["P1/{w}_s1_outlines.tif", "P1/{w}_s1_mask.ome.tif"], ("1",), 1),
        (["P1/{w}_w1.tif"], ["P1/{w}_nuclei_objects.tif"], ("1",), 1),
    ],
)
def test_what_an_analysis_made_of_images_is_left_out(
    tmp_path: Path, forms: list[str], made: list[str], channels: tuple[str, ...], sites: int
):
    screen = read_screen(write(tmp_path, wells(*forms, *made)), CONFIG)
    assert (screen.channels, len(screen.plates), len(paths(screen))) == (channels, 1, 3 * sites)
    assert {path for each in paths(screen).values() for path in each} == set(wells(*forms))
    assert any(f"{3 * len(made)} images with other names are left out" in text for text in screen.warnings)


def test_a_channel_of_masks_is_read_where_every_site_has_it(tmp_path: Path):
    root = write(tmp_path, wells("P1/{w}_dapi.tif", "P1/{w}_actin.tif", "P1/{w}_mask.tif"))
    assert read_screen(root, CONFIG).channels == ("actin", "dapi", "mask")
    (root / "P1/B01_mask.tif").unlink()
    screen = read_screen(root, CONFIG)
    assert (screen.channels, len(paths(screen))) == (("actin", "dapi"), 3)
    assert any("2 images with other names" in text for text in screen.warnings)


@pytest.mark.parametrize("name", ["P1/A01.czi", "001001000.flex", "P1/A.JP2", "a.tif.gz"])
def test_formats_of_microscopes_are_named(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / "map.csv").write_text(MAP)
    with pytest.raises(InputError, match=r"1 \.[\w.]+ file \(.*\): export the images as TIFF or OME-Zarr$"):
        read_screen(tmp_path, CONFIG)


def zarr_plate(root: Path, name: str, value: int = 7) -> None:
    """An OME-Zarr plate of the map's wells, one site of four chunks."""
    import zarr

    paths = ["A/1", "A/2", "B/1"]
    groups = {"": {"plate": {"wells": [{"path": path} for path in paths]}}}
    groups |= {path: {"well": {"images": [{"path": "0"}]}} for path in paths}
    axes = [{"name": axis} for axis in "yx"]
    groups |= {f"{path}/0": {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]} for path in paths}
    for path, attributes in groups.items():
        (root / name / path).mkdir(parents=True, exist_ok=True)
        (root / name / path / ".zattrs").write_text(json.dumps(attributes))
    for path in paths:
        array = zarr.create_array(
            str(root / name / path / "0" / "0"), shape=(8, 8), chunks=(4, 4), dtype="uint16", zarr_format=2
        )
        array[:] = value
    (root / "map.csv").write_text(MAP)


def test_copies_of_zarr_plates_are_refused_and_chosen_by_pattern(tmp_path: Path):
    for name in ("P1.zarr", "P1_mip.zarr"):
        zarr_plate(tmp_path, name)
    with pytest.raises(InputError, match=r"copies of one plate.*screen\.pattern.*P1 and P1_mip"):
        read_screen(tmp_path, CONFIG)
    config = CONFIG.model_copy(update={"pattern": r"_mip\.zarr$"})
    assert [plate.plate for plate in read_screen(tmp_path, config).plates] == ["P1_mip"]


@pytest.mark.parametrize("where", ["", "A/1", "A/1/0"])
@pytest.mark.parametrize("text", ["[]", "null", "7", '{"well": null}', '{"plate": [], "well": {"images": {}}}', "{"])
def test_metadata_of_another_shape_are_named(tmp_path: Path, where: str, text: str):
    zarr_plate(tmp_path, "P1.zarr")
    (tmp_path / "P1.zarr" / where / ".zattrs").write_text(text)
    with pytest.raises(InputError, match=r"P1\.zarr.*"):
        read_screen(tmp_path, CONFIG)


def test_acquisitions_of_zarr_plates_are_said_once_a_plate(tmp_path: Path):
    for name in ("P1.zarr", "P2.zarr"):
        zarr_plate(tmp_path, name)
        for well in ("A/1", "A/2", "B/1"):
            images = [{"path": "7", "acquisition": 3}, {"path": "0", "acquisition": None}]
            (tmp_path / name / well / ".zattrs").write_text(json.dumps({"well": {"images": images}}))
    screen = read_screen(tmp_path, CONFIG)
    assert paths(screen)["P1", "A01", 1] == ["P1.zarr/A/1/0"]
    (said,) = [text for text in screen.warnings if "acquisitions" in text]
    assert said.count("A/1, A/2, B/1") == 2
    with pytest.raises(InputError, match=r"screen\.pattern: '\(' is no regular expression"):
        read_screen(tmp_path, CONFIG.model_copy(update={"pattern": "("}))


def test_lost_chunks_are_counted(tmp_path: Path):
    zarr_plate(tmp_path, "P1.zarr")
    screen = read_screen(tmp_path, CONFIG)

    def warnings() -> tuple[list[str], tuple[str, ...]]:
        found = inspect_screen(ScreenDirectory(tmp_path), ScreenConfig(), known_cells=False)
        (packed,) = pack_plates(packing_of(tmp_path, screen, MemoryStore()), screen.plates)
        return [str(each) for each in found.findings if "chunk" in each.what], packed.warnings

    assert warnings() == ([], ())
    (tmp_path / "P1.zarr/A/2/0/0/0.1").unlink()
    inspected, (packed,) = warnings()
    assert "1 of 12 chunks" in inspected[0]
    assert "A/2/0" in inspected[0]
    assert "1 of 12 chunks" in packed


def test_the_folder_of_one_plate_is_a_screen(tmp_path: Path):
    zarr_plate(tmp_path, "P1")
    screen = read_screen(tmp_path / "P1", CONFIG)
    assert plates(screen) == {"P1": "screen"}
    assert len(screen.plates[0].wells) == 3
