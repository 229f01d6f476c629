"""The tables of a screen: what is read, and how labels become classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.layouts import read_screen
from components.core.screen.wells import is_well_name, natural_key
from tests.tiny_screen import CONFIG, LABELLED, PLATES, UNLABELLED, TinyScreen


def test_plates_wells_and_classes_are_as_written(tiny: TinyScreen):
    screen = read_screen(tiny.root, CONFIG.screen)
    names = [(plate.experiment, plate.plate) for plate in screen.plates]
    assert names == [(e, p) for e in sorted((*LABELLED, *UNLABELLED)) for p in PLATES]
    first = screen.plates[0]
    assert (first.cell_type, first.labelled, first.folder) == ("HUVEC", True, "train/HUVEC-01/Plate1")
    assert [(well.well, well.sirna) for well in first.wells] == [
        ("B02", "UNTREATED"),
        ("B03", "sirna_7"),
        ("B04", "sirna_30"),
        ("C02", "sirna_2"),
        ("C03", "sirna_5"),
    ]
    hidden = next(plate for plate in screen.plates if plate.experiment == "HUVEC-03")
    assert not hidden.labelled
    assert [well.sirna for well in hidden.wells] == ["UNTREATED", None, None, None, "sirna_5"]
    assert screen.vocabulary.treatments == ("sirna_2", "sirna_7", "sirna_9", "sirna_11", "sirna_30", "sirna_100")
    assert screen.vocabulary.positives == ("sirna_5",)
    assert screen.vocabulary.negatives == ("UNTREATED",)
    assert screen.training_experiments() == {"HUVEC": ["HUVEC-01", "HUVEC-02"], "RPE": ["RPE-01"]}


def test_integer_labels_stay_as_written(tiny: TinyScreen):
    for table in ("train.csv", "train_controls.csv", "test_controls.csv"):
        path = tiny.root / table
        path.write_text(path.read_text().replace("sirna_", "").replace("UNTREATED", "1138"))
    vocabulary = read_screen(tiny.root, CONFIG.screen).vocabulary
    assert vocabulary.classes == ("2", "7", "9", "11", "30", "100", "5", "1138")


def test_byte_order_mark_carriage_returns_blank_lines_and_further_columns_change_nothing(tiny: TinyScreen):
    before = read_screen(tiny.root, CONFIG.screen)
    for path in tiny.root.glob("*.csv"):
        lines = path.read_text().splitlines()
        wider = [f"{line},{'note' if i == 0 else ''}" for i, line in enumerate(lines)]
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*wider, "", ""]).encode())
    assert read_screen(tiny.root, CONFIG.screen) == before


def test_row_order_does_not_matter(tiny: TinyScreen):
    before = read_screen(tiny.root, CONFIG.screen)
    for path in tiny.root.glob("*.csv"):
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([header, *rows[::-1]]))
    assert read_screen(tiny.root, CONFIG.screen) == before


def test_truth_in_the_test_table_is_not_read(tiny: TinyScreen):
    before = read_screen(tiny.root, CONFIG.screen)
    path = tiny.root / "test.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},sirna", *(f"{row},sirna_7" for row in rows)]))
    assert read_screen(tiny.root, CONFIG.screen) == before


def test_a_screen_without_unlabelled_experiments_is_read(tiny: TinyScreen):
    (tiny.root / "test.csv").unlink()
    (tiny.root / "test_controls.csv").unlink()
    assert {plate.experiment for plate in read_screen(tiny.root, CONFIG.screen).plates} == set(LABELLED)


def test_held_out_experiments_are_no_training_experiments(tiny: TinyScreen):
    config = CONFIG.screen.model_copy(update={"holdout_experiments": ("HUVEC-02",)})
    screen = read_screen(tiny.root, config)
    assert screen.training_experiments() == {"HUVEC": ["HUVEC-01"], "RPE": ["RPE-01"]}
    assert {plate.experiment for plate in screen.plates if plate.holdout} == {"HUVEC-02"}
    assert screen.vocabulary == read_screen(tiny.root, CONFIG.screen).vocabulary


@given(st.lists(st.text("ab019_-²", max_size=6)))
def test_natural_order_is_total_and_counts_numbers(texts):
    assert len({natural_key(text) for text in texts}) == len(set(texts))
    backwards = texts[::-1]
    assert sorted(texts, key=natural_key) == sorted(backwards, key=natural_key)
    assert natural_key("a2b") < natural_key("a10b")


@given(st.text("ABPQ0123459b ", max_size=4))
def test_well_names_are_those_of_a_384_well_plate(text):
    names = {f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)}
    assert is_well_name(text) == (text in names)


RXRX1 = Path(__file__).resolve().parents[4] / ".." / "shared" / "rxrx1"
real = pytest.mark.skipif(not RXRX1.is_dir(), reason="the RxRx1 metadata is not beside the repository")


@real
def test_the_tables_of_rxrx1_are_read():
    config = ScreenConfig(holdout_experiments=("HUVEC-05", "RPE-03"))
    screen = read_screen(RXRX1, config)
    assert len(screen.plates) == 204
    assert len({plate.experiment for plate in screen.plates}) == 51
    sizes = (len(screen.vocabulary.treatments), len(screen.vocabulary.positives), len(screen.vocabulary.negatives))
    assert sizes == (1108, 30, 1)
    assert {c: len(e) for c, e in screen.training_experiments().items()} == {
        "HEPG2": 7,
        "HUVEC": 15,
        "RPE": 6,
        "U2OS": 3,
    }
    lines = sum(
        len((RXRX1 / f"{name}.csv").read_text().splitlines()) - 1
        for name in ("train", "test", "train_controls", "test_controls")
    )
    assert sum(len(plate.wells) for plate in screen.plates) == lines
    hidden = [well for plate in screen.plates for well in plate.wells if well.sirna is None]
    assert len(hidden) == len((RXRX1 / "test.csv").read_text().splitlines()) - 1


@real
def test_rxrx1_needs_its_four_cell_types():
    with pytest.raises(InputError, match=r"train\.csv line 2 .*unknown cell type 'HEPG2'; known are HUVEC"):
        read_screen(RXRX1, ScreenConfig(cell_types=("HUVEC",)))


def test_a_label_that_one_well_alone_has_is_an_unknown_sirna(tmp_path: Path):
    def read(last: str):
        rows = [
            f"HUVEC-0{e}_1_B0{w},HUVEC-0{e},1,B0{w},sirna_{w}"
            for e in (1, 2, 3, 4, 5)
            for w in (3, 4, 5)
            if (e, w) != (5, 5)
        ]
        table = ["id_code,experiment,plate,well,sirna", *rows, f"HUVEC-05_1_B05,HUVEC-05,1,B05,{last}"]
        (tmp_path / "train.csv").write_text("\n".join(table) + "\n")
        return read_screen(tmp_path, ScreenConfig(cell_types=("HUVEC",)))

    assert read("sirna_5").vocabulary.treatments == ("sirna_3", "sirna_4", "sirna_5")
    with pytest.raises(InputError, match=r"train\.csv.*HUVEC-05_1_B05.*field sirna is 'foo', an unknown siRNA"):
        read("foo")
