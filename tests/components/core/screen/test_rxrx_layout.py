"""The rxrx.ai layout: the same screen as in the Kaggle one, and truth that stays unread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.core.screen.images import list_plate
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Plate
from tests.rxrx_screen import CONTROL_IDS, IDS, to_rxrx
from tests.tiny_screen import CONFIG, TinyScreen


@pytest.fixture
def kaggle(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "kaggle", imaged=["HUVEC-01"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return to_rxrx(TinyScreen(tmp_path / "rxrx", imaged=["HUVEC-01"]))


def test_both_layouts_tell_of_the_same_wells(kaggle: TinyScreen, root: Path):
    ids = {label: str(number) for label, number in {**IDS, **CONTROL_IDS}.items()}

    def renamed(plate: Plate) -> Plate:
        wells = tuple(replace(well, sirna=ids.get(well.sirna or "")) for well in plate.wells)
        return replace(plate, folder=f"images/{plate.experiment}/Plate{plate.plate}", wells=wells)

    screen = read_screen(root, CONFIG.screen)
    assert screen.plates == tuple(map(renamed, read_screen(kaggle.root, CONFIG.screen).plates))
    assert screen.vocabulary.treatments == ("2", "7", "9", "11", "30", "100")
    assert (screen.vocabulary.positives, screen.vocabulary.negatives) == (("1108",), ("1138",))
    files = list_plate(ScreenDirectory(root), screen.plates[0], 2)
    assert len(files.facts) == 5 * 2 * 6


def test_the_truth_of_unlabelled_wells_is_not_read(root: Path):
    screen = read_screen(root, CONFIG.screen)
    hidden = [w for plate in screen.plates if not plate.labelled for w in plate.wells if w.well_type == "treatment"]
    assert len(hidden) == 6
    assert {well.sirna for well in hidden} == {None}
    assert "7777" not in screen.vocabulary.classes
    table = root / "metadata.csv"
    for other in ("", "8"):  # another truth, or none, is the same screen
        table.write_text(table.read_text().replace(",7777\n", f",{other}\n"))
        assert read_screen(root, CONFIG.screen) == screen
        table.write_text(table.read_text().replace(f",{other}\n", ",7777\n"))
    table.write_text(table.read_text().replace(",7777\n", ",8\n", 1))  # nor are the sites of a well compared
    assert read_screen(root, CONFIG.screen) == screen


def test_a_metadata_table_beside_the_kaggle_tables_is_of_no_concern(kaggle: TinyScreen):
    before = read_screen(kaggle.root, CONFIG.screen)
    (kaggle.root / "metadata.csv").write_text("something,else\n")
    assert read_screen(kaggle.root, CONFIG.screen) == before


ROW = "HUVEC-01_1_B03_1,HUVEC-01_1_B03,HUVEC,train,HUVEC-01,1,B03,1,treatment,s799,7\n"
BAD = {
    "missing column": ("sirna_id\n", "label\n", r"metadata\.csv: column sirna_id is missing; the header must have well_id"),
    "no label": (ROW, ROW.replace(",7\n", ",\n"), r"line 2 \(HUVEC-01_1_B03\): field sirna_id is empty"),
    "no well_id": (ROW, ROW.replace(",HUVEC-01_1_B03,", ",,"), r"line 2 \(no well_id\): field well_id is empty"),
    "another well_id": (ROW, ROW.replace(",HUVEC-01_1_B03,", ",HUVEC-01_1_B04,"), "field well_id disagrees with experi"),
    "cell type": (ROW, ROW.replace(",HUVEC,", ",RPE,"), r"field cell_type is 'RPE'; expected HUVEC"),
    "dataset": (ROW, ROW.replace("train", "val"), r"field dataset is 'val'; expected train or test"),
    "site": (ROW, ROW.replace("B03,1,treat", "B03,one,treat"), r"field site is 'one'; expected a whole number from 1"),
    "well type": (ROW, ROW.replace("treatment", "empty"), r"field well_type is 'empty'; expected treatment or positive"),
    "site twice": (ROW, ROW + ROW, r"line 3 \(HUVEC-01_1_B03\): site 1 of the well appears twice; remove one"),
    "sites disagree": (ROW, ROW.replace(",7\n", ",30\n"),
                       r"line 3 \(HUVEC-01_1_B03\): field sirna_id disagrees with .*metadata\.csv line 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_the_table_is_named(root: Path, case: str):
    old, new, message = BAD[case]
    table = root / "metadata.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        read_screen(root, CONFIG.screen)
    assert "\n" not in str(caught.value)


def test_an_experiment_is_either_labelled_or_not(root: Path):
    table = root / "metadata.csv"
    rows = [row.replace("train", "test") if "HUVEC-01_1_B03" in row else row for row in table.read_text().splitlines()]
    table.write_text("\n".join(rows) + "\n")
    with pytest.raises(
        InputError, match=r"HUVEC-01 is in the train half of the screen, but its treatments are in the test"
    ):
        read_screen(root, CONFIG.screen)
