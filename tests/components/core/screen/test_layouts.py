"""The tables of a screen: both layouts, how labels become classes, truth that stays unread, and every bad table."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.images import plate_files
from components.core.screen.layouts import read_new_plates, read_screen
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Plane, Plate, Screen, natural_key
from tests.rxrx_screen import CONTROL_IDS, IDS, write_rxrx
from tests.tiny_screen import CONFIG, LABELLED, PLATES, UNLABELLED, TinyScreen

RXRX1 = Path(__file__).resolve().parents[4] / ".." / "shared" / "rxrx1"


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    """The tables alone."""
    return TinyScreen(tmp_path / "screen", imaged=())


def read(root: Path, config: ScreenConfig = CONFIG.screen) -> Screen:
    """The tables of a screen alone."""
    return read_screen(root, config, images=False)


def read_new(root: Path, experiments: Sequence[str] = ()) -> tuple[Plate, ...]:
    """The tables of new plates alone."""
    return read_new_plates(root, experiments, images=False).plates


@pytest.fixture
def rxrx(tmp_path: Path) -> Path:
    """The same screen in the rxrx.ai layout, with the images of one experiment."""
    return write_rxrx(tmp_path / "rxrx", imaged=["HUVEC-01"])


def test_plates_wells_and_classes_are_as_written(tiny: TinyScreen):
    screen = read(tiny.root)
    names = [(plate.experiment, plate.plate) for plate in screen.plates]
    assert names == [(e, str(p)) for e in sorted((*LABELLED, *UNLABELLED)) for p in PLATES]
    first = screen.plates[0]
    assert (first.cell_type, first.labelled) == ("HUVEC", True)
    assert [(well.well, well.perturbation) for well in first.wells] == [
        ("B02", "UNTREATED"),
        ("B03", "sirna_7"),
        ("B04", "sirna_30"),
        ("C02", "sirna_2"),
        ("C03", "sirna_5"),
    ]
    hidden = next(plate for plate in screen.plates if plate.experiment == "HUVEC-03")
    assert not hidden.labelled
    assert [well.perturbation for well in hidden.wells] == ["UNTREATED", None, None, None, "sirna_5"]
    assert screen.vocabulary.treatments == ("sirna_2", "sirna_7", "sirna_9", "sirna_11", "sirna_30", "sirna_100")
    assert screen.vocabulary.positives == ("sirna_5",)
    assert screen.vocabulary.negatives == ("UNTREATED",)
    assert screen.training_experiments() == {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-01"]}


def test_labels_are_text_whatever_they_look_like(tiny: TinyScreen):
    for table in ("train.csv", "train_controls.csv", "test_controls.csv"):
        path = tiny.root / table
        text = path.read_text().replace("sirna_7\n", "007\n").replace("sirna_9\n", "1e5\n").replace("sirna_11", "None")
        path.write_text(text.replace("sirna_", "").replace("UNTREATED", "1138"))
    vocabulary = read(tiny.root).vocabulary
    assert vocabulary.classes == ("1e5", "2", "007", "30", "100", "None", "5", "1138")


def test_encoding_details_and_row_order_change_nothing(tiny: TinyScreen):
    before = read(tiny.root)
    for path in tiny.root.glob("*.csv"):
        header, *rows = path.read_text().splitlines()
        lines = [header, *rows[::-1], "", ""]
        path.write_text("\r\n".join(lines).replace(",", ";"), encoding="utf-16")
    assert read(tiny.root) == before


def test_the_screens_own_columns_stay_with_their_wells(tiny: TinyScreen):
    before = read(tiny.root)
    path = tiny.root / "train.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"dose,{header},note", *(f"{n},{row},x" for n, row in enumerate(rows))]))
    screen = read(tiny.root)
    assert screen.columns == ("dose", "note")
    extra = {well.id_code: well.extra for plate in screen.plates for well in plate.wells}
    assert [extra[row.split(",")[0]] for row in rows] == [(str(n), "x") for n in range(len(rows))]
    assert extra["HUVEC-01_1_B02"] == extra["HUVEC-03_1_B03"] == ("", "")
    bare = tuple(
        replace(plate, wells=tuple(replace(well, extra=()) for well in plate.wells)) for plate in screen.plates
    )
    assert replace(screen, plates=bare, columns=()) == before


@pytest.mark.parametrize(
    ("written", "meant"), [("B3", "B03"), ("b03", "B03"), ("AA2", "AA02"), ("af48", "AF48"), ("B003", "B03")]
)
def test_wells_are_written_in_one_way(tiny: TinyScreen, written: str, meant: str):
    tiny.edit("train.csv", ROW, f"HUVEC-01_1_{written},HUVEC-01,1,{written},sirna_7")
    wells = {well.well: well for well in read(tiny.root).plates[0].wells}
    assert (wells[meant].id_code, wells[meant].perturbation) == (f"HUVEC-01_1_{meant}", "sirna_7")


def test_wells_that_are_neither_treatment_nor_control_are_left_out_and_counted(tiny: TinyScreen):
    tiny.edit("train_controls.csv", "UNTREATED,negative_control", "UNTREATED,EMPTY")
    screen = read(tiny.root)
    assert [well.well for well in screen.plates[0].wells] == ["B03", "B04", "C02", "C03"]
    assert screen.warnings == ("1 well left out: neither treatment nor control (well_type 'EMPTY'): HUVEC-01_1_B02",)


@pytest.mark.parametrize("plate", ["1086293027", "BR00116991", "a b.c_d"])
def test_any_text_is_a_plate(tiny: TinyScreen, plate: str):
    for table in tiny.root.glob("*.csv"):
        table.write_text(table.read_text().replace("_1_", f"_{plate}_").replace(",1,", f",{plate},"))
    assert {each.plate for each in read(tiny.root).plates} == {plate, "2"}


def test_cell_types_come_from_a_column_or_the_configuration_or_the_names(tiny: TinyScreen):
    def of(config: ScreenConfig) -> set[tuple[str, str]]:
        return {(plate.experiment, plate.cell_type) for plate in read(tiny.root, config).plates}

    for table in tiny.root.glob("*.csv"):
        table.write_text(table.read_text().replace("HUVEC-01", "HUVEC-2024-05-13").replace("RPE-01", "2024-05-13"))
    types = {("HUVEC-2024-05-13", "HUVEC"), ("HUVEC-02", "HUVEC"), ("HUVEC-03", "HUVEC"), ("2024-05-13", "HUVEC")}
    assert of(ScreenConfig(cell_types=("HUVEC",))) == types
    with pytest.raises(InputError, match=r"field experiment is '2024-05-13', .*screen\.cell_types"):
        of(ScreenConfig(cell_types=("HUVEC", "RPE")))
    for table in tiny.root.glob("*.csv"):
        header, *rows = table.read_text().splitlines()
        table.write_text("\n".join([f"{header},cell_type", *(f"{row},{row[:2]}" for row in rows)]))
    assert of(ScreenConfig(cell_types=("HU", "20"))) == {(name, name[:2]) for name, _ in types}


def test_a_screen_without_unlabelled_experiments_is_read(tiny: TinyScreen):
    (tiny.root / "test.csv").unlink()
    (tiny.root / "test_controls.csv").unlink()
    assert {plate.experiment for plate in read(tiny.root).plates} == set(LABELLED)


@given(st.lists(st.text("ab019_-²", max_size=6)))
def test_natural_order_is_total_and_counts_numbers(texts):
    assert len({natural_key(text) for text in texts}) == len(set(texts))
    backwards = texts[::-1]
    assert sorted(texts, key=natural_key) == sorted(backwards, key=natural_key)
    assert natural_key("a2b") < natural_key("a10b")


@pytest.mark.skipif(not RXRX1.is_dir(), reason="the RxRx1 metadata is not beside the repository")
def test_the_tables_of_rxrx1_are_read():
    screen = read(RXRX1, ScreenConfig(holdout_experiments=("HUVEC-05", "RPE-03")))
    assert len(screen.plates) == 204
    assert len({plate.experiment for plate in screen.plates}) == 51
    sizes = (len(screen.vocabulary.treatments), len(screen.vocabulary.positives), len(screen.vocabulary.negatives))
    assert sizes == (1108, 30, 1)
    training = {cell_type: len(names) for cell_type, names in screen.training_experiments().items()}
    assert training == {"HEPG2": 7, "HUVEC": 15, "RPE": 6, "U2OS": 3}
    assert sum(len(plate.wells) for plate in screen.plates) == 62759


def test_both_layouts_make_the_same_screen(tiny: TinyScreen, rxrx: Path):
    ids = {label: str(number) for label, number in {**IDS, **CONTROL_IDS}.items()}

    def renamed(plate: Plate) -> Plate:
        wells = tuple(replace(well, perturbation=ids.get(well.perturbation or "")) for well in plate.wells)
        return replace(plate, wells=wells)

    kaggle = read(tiny.root)
    screen = read(rxrx)
    assert screen.plates == tuple(map(renamed, kaggle.plates))
    assert screen.vocabulary.treatments == ("2", "7", "9", "11", "30", "100")
    assert (screen.vocabulary.positives, screen.vocabulary.negatives) == (("1108",), ("1138",))
    imaged = read_screen(rxrx, CONFIG.screen.model_copy(update={"missing_images": "drop"}))
    assert [plate.name for plate in imaged.plates] == ["HUVEC-01 plate 1", "HUVEC-01 plate 2"]
    assert len(plate_files(ScreenDirectory(rxrx), imaged.plates[0]).facts) == 5 * 2 * 6
    (tiny.root / "metadata.csv").write_text("something,else\n")
    assert read(tiny.root) == kaggle, "the Kaggle tables win"


def test_the_truth_of_unlabelled_wells_in_metadata_is_not_read(rxrx: Path):
    screen = read(rxrx)
    hidden = [w for plate in screen.plates if not plate.labelled for w in plate.wells if w.role == "treatment"]
    assert len(hidden) == 6
    assert {well.perturbation for well in hidden} == {None}
    assert "7777" not in screen.vocabulary.classes
    table = rxrx / "metadata.csv"
    text = table.read_text()
    # Another truth or none is the same screen, nor are the sites of a well compared.
    for other, count in (("", -1), ("8", -1), ("8", 1)):
        table.write_text(text.replace(",7777\n", f",{other}\n", count))
        assert read(rxrx) == screen


def edit(table: str, old: str, new: str) -> Callable[[TinyScreen], object]:
    return lambda tiny: tiny.edit(table, old, new)


def header_only(path: Path) -> None:
    path.write_text(path.read_text().splitlines()[0] + "\n")


ROW = "HUVEC-01_1_B03,HUVEC-01,1,B03,sirna_7"
FIRST = r"train\.csv line 2 \(HUVEC-01_1_B03\): field "
KAGGLE: dict[str, tuple[Callable[[TinyScreen], object], str]] = {
    "empty value": (edit("train.csv", ROW, "HUVEC-01_1_B03,HUVEC-01,1,B03,"), FIRST + "sirna is ''; it is empty"),
    "no id_code": (edit("train.csv", ROW, ",HUVEC-01,1,B03,sirna_7"), r"line 2 \(\): field id_code is ''; it is empty"),
    "plate a folder": (edit("train.csv", "HUVEC-01_1_B03,HUVEC-01,1,B03", "HUVEC-01_a/b_B03,HUVEC-01,a/b,B03"),
                       r"line 2 \(HUVEC-01_a/b_B03\): field plate is 'a/b'; it names a folder"),
    "malformed well": (edit("train.csv", ROW, "HUVEC-01_1_B99,HUVEC-01,1,B99,sirna_7"),
                       r"line 2 \(HUVEC-01_1_B99\): field well is 'B99'; expected a row A-AF and a column 1-48"),
    "id_code disagrees": (edit("train.csv", ROW, "HUVEC-01_2_B03,HUVEC-01,1,B03,sirna_7"),
                          r"field id_code is 'HUVEC-01_2_B03', but experiment, plate and well make HUVEC-01_1_B03"),
    "well twice": (edit("train.csv", ROW, f"{ROW}\n{ROW}"), r"train\.csv line 3 \(HUVEC-01_1_B03\): field id_code is "
                   r"'HUVEC-01_1_B03', first in .*train\.csv line 2; the well appears twice: remove"),
    "well twice across files": (
        edit("train_controls.csv", "HUVEC-01_1_B02,HUVEC-01,1,B02", "HUVEC-01_1_B03,HUVEC-01,1,B03"),
        r"train_controls\.csv line 2 \(HUVEC-01_1_B03\): .*first in .*train\.csv line 2; the well appears twice"),
    "unknown control": (edit("test_controls.csv", "sirna_5", "sirna_6"),
                        r"test_controls\.csv line 3 \(HUVEC-03_1_C03\): field sirna is 'sirna_6'; an unknown label"),
    "treatment and control": (edit("train_controls.csv", "sirna_5", "sirna_7"),
                              r"train_controls\.csv line 3 .*field sirna is 'sirna_7', other than in .*train\.csv line 2; "
                              r"a positive_control here and a treatment in another"),
    "unknown cell type": (edit("train.csv", ROW, "HELA-01_1_B03,HELA-01,1,B03,sirna_7"),
                          r"line 2 \(HELA-01_1_B03\): field experiment is 'HELA-01', cell type 'HELA'; an unknown cell type; "
                          r"known are HUVEC, RPE \(screen\.cell_types\)"),
    "experiment no name": (edit("train.csv", ROW, "../x_1_B03,../x,1,B03,sirna_7"), r"field experiment is '\.\./x'"),
    "controls without treatments": (
        edit("train_controls.csv", "HUVEC-01_1_B02,HUVEC-01", "HUVEC-09_1_B02,HUVEC-09"),
        r"train_controls\.csv line 2 \(HUVEC-09_1_B02\): .* controls but no treatment well in .*/train\.csv"),
    "labelled and unlabelled": (edit("test.csv", "HUVEC-03_1_B03,HUVEC-03,1,B03", "HUVEC-01_1_D03,HUVEC-01,1,D03"),
                                r"test\.csv line 2 \(HUVEC-01_1_D03\): field experiment is 'HUVEC-01'; it is in the test half"),
    "empty screen": (lambda tiny: [header_only(p) for p in tiny.root.glob("*.csv")], r"screen: the screen is empty"),
    "no train.csv": (lambda tiny: (tiny.root / "train.csv").unlink(), r"train\.csv: cannot be read \(No such file"),
    "no directory": (lambda tiny: shutil.rmtree(tiny.root), r"screen: no such directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", KAGGLE)
def test_rejects_a_bad_table(tiny: TinyScreen, case: str):
    damage, message = KAGGLE[case]
    damage(tiny)
    with pytest.raises(InputError, match=message) as caught:
        read(tiny.root)
    assert "\n" not in str(caught.value)


SITE = "HUVEC-01_1_B03_1,HUVEC-01_1_B03,HUVEC,train,HUVEC-01,1,B03,1,treatment,s7,7\n"
RXRX = {
    "missing column": ("sirna_id\n", "label\n", r"metadata\.csv line 1: column sirna_id is missing"),
    "no label": (SITE, SITE.replace(",7\n", ",\n"), r"line 2 \(HUVEC-01_1_B03\): field sirna_id is ''; it is empty"),
    "no well_id": (SITE, SITE.replace(",HUVEC-01_1_B03,", ",,"), r"line 2 \(\): field well_id is ''; it is empty"),
    "another well_id": (SITE, SITE.replace(",HUVEC-01_1_B03,", ",HUVEC-01_1_B04,"), "experiment, plate and well make"),
    "cell type": (SITE, SITE.replace(",HUVEC,", ",RPE,"), r"field cell_type is 'RPE', expected HUVEC"),
    "dataset": (SITE, SITE.replace("train", "val"), r"field dataset is 'val'; expected train or test"),
    "site": (SITE, SITE.replace("B03,1,treat", "B03,one,treat"), r"field site is 'one'; expected a whole number from 1"),
    "well type": (SITE, SITE.replace("treatment", "empty"), r"field well_type is 'treatment', not as in line 2; another site"),
    "site twice": (SITE, SITE + SITE, r"line 3 \(HUVEC-01_1_B03\): field site is '1'; the site appears twice"),
    "sites disagree": (SITE, SITE.replace(",7\n", ",30\n"),
                       r"line 3 \(HUVEC-01_1_B03\): field sirna_id is '7', not as in line 2; another site of the well differs"),
    "both halves": (",train,HUVEC-01,1,C02,", ",test,HUVEC-01,1,C02,", "it is in the .* half of the screen"),
}  # fmt: skip


@pytest.mark.parametrize("case", RXRX)
def test_rejects_bad_metadata(rxrx: Path, case: str):
    old, new, message = RXRX[case]
    table = rxrx / "metadata.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, -1 if case == "both halves" else 1))
    with pytest.raises(InputError, match=message) as caught:
        read(rxrx)
    assert "\n" not in str(caught.value)


def test_rejects_a_label_of_one_well_in_a_screen_of_many_experiments(tmp_path: Path):
    def read_with(last: str):
        wells = [(e, w) for e in range(1, 6) for w in (3, 4, 5)]
        rows = [f"HUVEC-0{e}_1_B0{w},HUVEC-0{e},1,B0{w},sirna_{w}" for e, w in wells]
        rows[-1] = rows[-1].replace("sirna_5", last)
        (tmp_path / "train.csv").write_text("\n".join(["id_code,experiment,plate,well,sirna", *rows]) + "\n")
        return read(tmp_path, ScreenConfig(cell_types=("HUVEC",)))

    assert read_with("sirna_5").vocabulary.treatments == ("sirna_3", "sirna_4", "sirna_5")
    with pytest.raises(InputError, match=r"train\.csv.*HUVEC-05_1_B05.*field sirna is 'foo'; an unknown label"):
        read_with("foo")


def test_new_plates_are_read_without_labels(tiny: TinyScreen):
    plates = read_new(tiny.root)
    assert [p.name for p in plates] == [f"{e} plate {p}" for e in sorted((*LABELLED, *UNLABELLED)) for p in (1, 2)]
    assert not any(plate.labelled or plate.holdout for plate in plates)
    assert {well.perturbation for plate in plates for well in plate.wells} == {None}
    tiny.edit("train.csv", "sirna_7", "never heard of")
    tiny.edit("train_controls.csv", "sirna_5", "")
    assert read_new(tiny.root) == plates
    for table in ("train.csv", "train_controls.csv", "test_controls.csv"):
        path = tiny.root / table
        rows = [line.split(",") for line in path.read_text().splitlines()]
        path.write_text("".join(",".join(row[:4] + row[5:]) + "\n" for row in rows))
    assert read_new(tiny.root) == plates


def test_new_plates_need_one_table_of_treatments(tiny: TinyScreen):
    for name in ("train.csv", "train_controls.csv", "test_controls.csv"):
        (tiny.root / name).unlink()
    plates = read_new(tiny.root)
    assert {plate.experiment for plate in plates} == set(UNLABELLED)
    assert {well.role for plate in plates for well in plate.wells} == {"treatment"}
    (tiny.root / "test.csv").unlink()
    with pytest.raises(InputError, match=r"screen: no screen in a known layout: looked for .*; there is nothing"):
        read_new(tiny.root)


def test_new_plates_can_be_chosen_and_be_of_any_cell_type(tiny: TinyScreen):
    for table in ("test.csv", "test_controls.csv"):
        path = tiny.root / table
        path.write_text(path.read_text().replace("HUVEC-03", "K562-03"))
    plates = read_new(tiny.root, ["RPE-01", "K562-03"])
    assert [(plate.experiment, plate.cell_type) for plate in plates[::2]] == [("K562-03", "K562"), ("RPE-01", "RPE")]
    with pytest.raises(InputError, match="no experiment 'HUVEC-3'; there are HUVEC-01, HUVEC-02, K562-03, RPE-01"):
        read_new(tiny.root, ["HUVEC-3"])
    tiny.edit("test.csv", "K562-03_1_B03,K562-03,1,B03", "K562-03_1_B03,K562-03,1,B99")
    with pytest.raises(InputError, match=r"test\.csv line 2 \(K562-03_1_B03\): field well is 'B99'"):
        read_new(tiny.root)


@pytest.fixture
def named(tmp_path: Path) -> TinyScreen:
    """All tables, and empty files for all images."""
    return TinyScreen(tmp_path / "named", imaged=(), named=True)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.suffix != ".csv"]


@pytest.mark.parametrize("suffix", [".PNG", ".tif", ".TIFF", ".jpg"])
def test_images_of_any_usual_suffix_are_found(named: TinyScreen, suffix: str):
    before = read_screen(named.root, CONFIG.screen)
    for path in files(named.root):
        path.rename(path.with_suffix(suffix))
    after = read_screen(named.root, CONFIG.screen)
    assert [len(well.sites) for plate in after.plates for well in plate.wells] == [2] * 40
    assert (after.vocabulary, after.warnings) == (before.vocabulary, ())


def test_a_screen_of_fewer_channels_is_read_if_they_are_named(named: TinyScreen):
    for path in files(named.root):
        if "_w6" in path.name:
            path.unlink()
    with pytest.raises(
        InputError, match=r"5 channels \(w1-w5\) were found in all wells, and RxRx1's 6 .*screen\.channels"
    ):
        read_screen(named.root, CONFIG.screen)
    screen = read_screen(named.root, CONFIG.screen.model_copy(update={"channels": tuple("abcde")}))
    assert screen.channels == tuple("abcde")
    assert {len(site.channels) for plate in screen.plates for well in plate.wells for site in well.sites} == {5}


def test_pictures_are_read_as_channels_if_these_are_named(named: TinyScreen):
    for path in files(named.root):
        if path.name.endswith("_w1.png"):
            path.rename(path.with_name(path.name.replace("_w1", "")))
        else:
            path.unlink()
    with pytest.raises(InputError, match=r"pictures WELL_sSITE, one a site, .*screen\.channels to the names"):
        read_screen(named.root, CONFIG.screen)
    screen = read_screen(named.root, CONFIG.screen.model_copy(update={"channels": ("red", "green", "blue")}))
    site = screen.plates[0].wells[0].sites[0]
    path = "train/HUVEC-01/Plate1/B02_s1.png"
    assert site.channels == tuple((Plane(path, sample, "3 planes"),) for sample in range(3))


def test_all_sites_are_read_or_the_first_that_are_wanted(named: TinyScreen):
    for path in files(named.root):
        for site in range(3, 10):
            path.with_name(path.name.replace("_s2_", f"_s{site}_")).touch()
    every = read_screen(named.root, CONFIG.screen.model_copy(update={"sites": None}))
    assert [site.site for site in every.plates[0].wells[0].sites] == list(range(1, 10))
    some = read_screen(named.root, CONFIG.screen.model_copy(update={"sites": 4}))
    assert [site.site for site in some.plates[0].wells[0].sites] == [1, 2, 3, 4]
    assert some.warnings == ("wells have up to 9 sites, the first 4 are read (screen.sites)",)


def test_a_role_that_only_unlabelled_experiments_have_is_said(tiny: TinyScreen):
    table = tiny.root / "train_controls.csv"
    table.write_text(table.read_text().replace("negative_control", "EMPTY"))
    screen = read(tiny.root)
    assert screen.vocabulary.negatives == ("UNTREATED",)
    left_out, unlabelled = screen.warnings
    assert left_out.startswith("6 wells left out: neither treatment nor control (well_type 'EMPTY')")
    assert unlabelled.startswith("labelled experiments have no negative_control, unlabelled ones have: ")
