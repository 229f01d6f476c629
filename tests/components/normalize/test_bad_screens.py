"""Bad screens: one line that names file, well and field, and nothing half-written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.core.config import FoldsConfig
from components.core.errors import InputError
from components.normalize.config import NormalizeConfig
from components.normalize.step import run
from tests.tiny_screen import CONFIG, SIZE, MemoryStore, TinyScreen, write_png

Damage = Callable[[TinyScreen], object]


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen")


@pytest.fixture
def tables(tmp_path: Path) -> TinyScreen:
    """A screen without images: whatever is wrong with its tables must be found before an image is missed."""
    return TinyScreen(tmp_path / "screen", imaged=[])


def edit(table: str, old: str, new: str) -> Damage:
    return lambda tiny: tiny.edit(table, old, new)


def header_only(table: str) -> Damage:
    return lambda tiny: (tiny.root / table).write_text((tiny.root / table).read_text().splitlines()[0] + "\n")


def refuse(tiny: TinyScreen, message: str, config: NormalizeConfig = CONFIG) -> MemoryStore:
    """Runs normalize, expects the message on one line and no output; returns the store as it was left."""
    out = tiny.root.parent / "out"
    store = MemoryStore()
    with pytest.raises(InputError, match=message) as caught:
        run(config, tiny.root, store, out / "screen.json", out / "holdout.json", out / "labels.csv")
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return store


ROW = "HUVEC-01_1_B03,HUVEC-01,1,B03,sirna_7"
TABLES = {
    "missing column": (edit("train.csv", "id_code,experiment,plate,well,sirna", "id_code,experiment,plate,well,label"),
                       r"train\.csv: column sirna is missing; the header must have id_code, experiment"),
    "column twice": (edit("train.csv", "id_code,experiment,plate,well,sirna", "id_code,experiment,plate,well,well"),
                     r"train\.csv: column well appears twice"),
    "empty file": (lambda tiny: (tiny.root / "train.csv").write_text(""), r"train\.csv: column id_code is missing"),
    "empty value": (edit("train.csv", ROW, "HUVEC-01_1_B03,HUVEC-01,1,B03,"),
                    r"train\.csv line 2 \(HUVEC-01_1_B03\): field sirna is empty"),
    "blank value": (edit("train.csv", ROW, "HUVEC-01_1_B03,HUVEC-01,1,  ,sirna_7"), r"line 2 .*: field well is empty"),
    "NaN": (edit("train.csv", ROW, "HUVEC-01_1_B03,HUVEC-01,1,B03,NaN"),
            r"train\.csv line 2 \(HUVEC-01_1_B03\): field sirna is empty \(found 'NaN'\)"),
    "no id_code": (edit("train.csv", ROW, ",HUVEC-01,1,B03,sirna_7"), r"line 2 \(no id_code\): field id_code is empty"),
    "too few fields": (edit("train.csv", ROW, "HUVEC-01_1_B03,HUVEC-01,1,B03"),
                       r"train\.csv line 2 \(HUVEC-01_1_B03\): 4 fields where the header has 5"),
    "too many fields": (edit("train.csv", ROW, ROW + ",1"),
                        r"line 2 \(HUVEC-01_1_B03\): 6 fields where the header has 5"),
    "plate no number": (edit("train.csv", "HUVEC-01,1,B03", "HUVEC-01,1.0,B03"),
                        r"train\.csv line 2 \(HUVEC-01_1_B03\): field plate is '1\.0'; expected a whole number from 1"),
    "plate 0": (edit("train.csv", "HUVEC-01,1,B03", "HUVEC-01,0,B03"), "field plate is '0'"),
    "malformed well": (edit("train.csv", ROW, "HUVEC-01_1_B3,HUVEC-01,1,B3,sirna_7"),
                       r"line 2 \(HUVEC-01_1_B3\): field well is 'B3'; expected a row A-P and a column 01-24"),
    "well off the plate": (edit("train.csv", ROW, "HUVEC-01_1_Q03,HUVEC-01,1,Q03,sirna_7"), "field well is 'Q03'"),
    "id_code disagrees": (edit("train.csv", ROW, "HUVEC-01_2_B03,HUVEC-01,1,B03,sirna_7"),
                          r"line 2 \(HUVEC-01_2_B03\): field id_code disagrees .* HUVEC-01_1_B03"),
    "well twice": (edit("train.csv", ROW, f"{ROW}\n{ROW}"),
                   r"train\.csv line 3 \(HUVEC-01_1_B03\): the well appears twice, first in .*train\.csv line 2"),
    "well twice across files": (
        edit("train_controls.csv", "HUVEC-01_1_B02,HUVEC-01,1,B02", "HUVEC-01_1_B03,HUVEC-01,1,B03"),
        r"train_controls\.csv line 2 \(HUVEC-01_1_B03\): the well appears twice, first in .*train\.csv line 2"),
    "unknown control": (edit("test_controls.csv", "sirna_5", "sirna_6"),
                        r"test_controls\.csv line 3 \(HUVEC-03_1_C03\): field sirna is 'sirna_6', an unknown siRNA"),
    "treatment and control": (edit("train_controls.csv", "sirna_5", "sirna_7"),
                              r"train_controls\.csv line 3 .*field sirna is 'sirna_7', a positive_control here and a "
                              r"treatment in .*train\.csv line 2"),
    "positive and negative": (edit("train_controls.csv", "sirna_5,positive_control", "sirna_5,negative_control"),
                              "field sirna is 'sirna_5', a positive_control here and a negative_control in"),
    "unknown cell type": (edit("train.csv", ROW, "HELA-01_1_B03,HELA-01,1,B03,sirna_7"),
                          r"line 2 \(HELA-01_1_B03\): field experiment is 'HELA-01', of the unknown cell type 'HELA'; "
                          r"known are HUVEC, RPE \(screen\.cell_types\)"),
    "experiment no name": (edit("train.csv", ROW, "../x_1_B03,../x,1,B03,sirna_7"), r"field experiment is '\.\./x'"),
    "unknown well type": (edit("train_controls.csv", "negative_control", "empty"),
                          r"train_controls\.csv line 2 \(HUVEC-01_1_B02\): field well_type is 'empty'; expected "
                          "positive_control or negative_control"),
    "controls without treatments": (
        edit("train_controls.csv", "HUVEC-01_1_B02,HUVEC-01", "HUVEC-09_1_B02,HUVEC-09"),
        r"train_controls\.csv line 2 \(HUVEC-09_1_B02\): experiment HUVEC-09 has controls but no treatment well"),
    "labelled and unlabelled": (edit("test.csv", "HUVEC-03_1_B03,HUVEC-03,1,B03", "HUVEC-01_1_D03,HUVEC-01,1,D03"),
                                r"test\.csv line 2 \(HUVEC-01_1_D03\): experiment HUVEC-01 is in the test half"),
    "empty screen": (lambda tiny: [header_only(p.name)(tiny) for p in tiny.root.glob("*.csv")],
                     r"train\.csv: the screen is empty"),
    "no train.csv": (lambda tiny: (tiny.root / "train.csv").unlink(), r"train\.csv: cannot be read \(No such file"),
    "no directory": (lambda tiny: shutil.rmtree(tiny.root), r"screen: no such directory"),
    "not UTF-8": (lambda tiny: (tiny.root / "train.csv").write_bytes(b"id_code\xff"), r"train\.csv: is not UTF-8"),
    "open quote": (edit("train.csv", ROW, f'"{ROW}'), r"train\.csv: is not a CSV table"),
}  # fmt: skip


FILES = {
    "no plate folder": (lambda tiny: shutil.rmtree(tiny.root / "train/RPE-01/Plate2"),
                        r"RPE-01/Plate2: cannot list the images of RPE-01 plate 2 \(No such file"),
    "one channel missing": (lambda tiny: tiny.image("RPE-01", 2, "C02", 1, 5).unlink(),
                            r"RPE-01/Plate2/C02_s1_w5\.png: missing; site 1 of well C02 lacks channel w5 \(mitoch"),
    "well without images": (
        lambda tiny: [tiny.image("RPE-01", 2, "C02", s, c).unlink() for s in (1, 2) for c in range(1, 7)],
        r"RPE-01/Plate2: well C02 of RPE-01 plate 2 has no images .*remove RPE-01_2_C02 from the tables"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_is_named_before_any_image_is_looked_for(tables: TinyScreen, case: str):
    damage, message = TABLES[case]
    damage(tables)
    assert refuse(tables, message).puts == []


@pytest.mark.parametrize("case", FILES)
def test_missing_images_are_named_before_any_plate_is_packed(tiny: TinyScreen, case: str):
    damage, message = FILES[case]
    damage(tiny)
    assert refuse(tiny, message).puts == []


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            {"holdout_experiments": ("HUVEC-03",)},
            r"screen\.holdout_experiments: 'HUVEC-03' is not a labelled experiment",
        ),
        (
            {"holdout_experiments": ("HUVEC-99",)},
            r"screen\.holdout_experiments: 'HUVEC-99' is not a labelled experiment",
        ),
        ({"sites": 1}, r"B02_s2_w1\.png: unexpected; well B02 has sites 1-1 \(screen\.sites\)"),
    ],
)
def test_a_configuration_that_disagrees_with_the_screen_is_named(tiny: TinyScreen, update, message):
    config = CONFIG.model_copy(update={"screen": CONFIG.screen.model_copy(update=update)})
    assert refuse(tiny, message, config).puts == []


def test_more_folds_than_experiments_that_are_not_held_out(tables: TinyScreen):
    config = NormalizeConfig(
        screen=CONFIG.screen.model_copy(update={"holdout_experiments": ("RPE-01",)}), folds=FoldsConfig(count=3)
    )
    assert refuse(tables, r"folds\.count is 3, but the screen has 2 labelled experiments", config).puts == []


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0x10
    path.write_bytes(bytes(data))


IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (cut(0), "the file is empty"),
    "cut in the header": (cut(0.05), "truncated"),
    "cut in half": (cut(0.5), "truncated"),
    "cut at its end": (cut(0.99), "truncated"),
    "a flipped bit": (flip, "damaged"),
    "another size": (lambda p: write_png(p, np.zeros((32, 24), np.uint8)), "expected 16x16 pixels, found 24x32"),
    "16 bit": (lambda p: write_png(p, np.zeros((SIZE, SIZE), np.uint16)),
               "expected an 8-bit grey image, found 16-bit grey"),
    "RGB": (lambda p: write_png(p, np.zeros((SIZE, SIZE, 3), np.uint8)),
            "expected an 8-bit grey image, found 8-bit RGB"),
    "no PNG": (lambda p: p.write_bytes(b"II*\0" + bytes(400)), "not a PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_a_bad_image_is_named_and_nothing_of_its_plate_stays(tiny: TinyScreen, case: str):
    damage, message = IMAGES[case]
    damage(tiny.image("HUVEC-01", 2, "B04", 2, 3))
    place = r"HUVEC-01/Plate2/B04_s2_w3\.png: channel w3 \(actin\) of well B04, site 2: "
    store = refuse(tiny, place + ".*" + re.escape(message))
    # The plate before it is whole and will be found again; of the bad one and those after it there is nothing.
    assert {key.split("-")[1] for key in store.objects if key.startswith("plates/")} == {"01_Plate1"}
    assert len([key for key in store.objects if key.startswith("copies/")]) == 1
