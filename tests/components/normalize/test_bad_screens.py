"""Bad screens: one line that names file, well and field; no output, no incomplete plate."""

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
    """A screen without images, whose tables are read first."""
    return TinyScreen(tmp_path / "screen", imaged=[])


def rejected(tiny: TinyScreen, message: str, config: NormalizeConfig = CONFIG) -> MemoryStore:
    """Runs normalize, expects the message on one line and no output; returns the store as it was left."""
    out = tiny.root.parent / "out"
    store = MemoryStore()
    with pytest.raises(InputError, match=message) as caught:
        run(config, tiny.root, store, out / "screen.json", out / "holdout.json", out / "labels.csv")
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return store


FILES = {
    "no plate folder": (lambda tiny: shutil.rmtree(tiny.root / "train/RPE-01/Plate2"),
                        r"RPE-01/Plate2: cannot list the images of RPE-01 plate 2 \(No such file"),
    "one channel missing": (lambda tiny: tiny.image("RPE-01", 2, "C02", 1, 5).unlink(),
                            r"RPE-01/Plate2: C02_s1_w5\.png is missing: site 1 of well C02 lacks channel w5 \(mitoch"),
    "many wells without images": (
        lambda tiny: [tiny.image("RPE-01", 2, w, s, c).unlink() for w in ("B04", "C02") for s in (1, 2) for c in range(1, 7)],
        r"RPE-01/Plate2: 2 faults: well B04 has no images .* \| well C02 has no images"),
}  # fmt: skip


def test_rejects_a_bad_table_before_reading_images(tables: TinyScreen):
    tables.edit("train.csv", "HUVEC-01,1,B03,", "HUVEC-01,1,B3,")
    assert rejected(tables, r"train\.csv line 2 \(HUVEC-01_1_B03\): field well is 'B3'").puts == []


@pytest.mark.parametrize("case", FILES)
def test_rejects_missing_images_before_any_plate_is_packed(tiny: TinyScreen, case: str):
    damage, message = FILES[case]
    damage(tiny)
    assert rejected(tiny, message).puts == []


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            {"holdout_experiments": ("HUVEC-99",)},
            r"screen\.holdout_experiments: 'HUVEC-99' is not a labelled experiment",
        ),
        ({"sites": 1}, r"Plate1: 30 faults: B02_s2_w1\.png is unexpected: well B02 has sites 1-1 \(screen\.sites\)"),
    ],
)
def test_rejects_a_configuration_that_disagrees_with_the_screen(tiny: TinyScreen, update, message):
    config = CONFIG.model_copy(update={"screen": CONFIG.screen.model_copy(update=update)})
    assert rejected(tiny, message, config).puts == []


def test_rejects_more_folds_than_experiments_that_are_not_held_out(tables: TinyScreen):
    config = NormalizeConfig(
        screen=CONFIG.screen.model_copy(update={"holdout_experiments": ("RPE-01",)}), folds=FoldsConfig(count=3)
    )
    assert rejected(tables, r"folds\.count is 3, but the screen has 2 labelled experiments", config).puts == []


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0x10
    path.write_bytes(bytes(data))


IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (cut(0), "the file is empty"),
    "cut at its end": (cut(0.99), "truncated"),
    "a flipped bit": (flip, "damaged"),
    "another size": (lambda p: write_png(p, np.zeros((32, 24), np.uint8)), "expected 16x16 pixels, found 24x32"),
    "16 bit": (lambda p: write_png(p, np.zeros((SIZE, SIZE), np.uint16)),
               "expected an 8-bit grey image, found 16-bit grey"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_rejects_a_bad_image_and_deletes_its_plate(tiny: TinyScreen, case: str):
    damage, message = IMAGES[case]
    damage(tiny.image("HUVEC-01", 2, "B04", 2, 3))
    place = r"HUVEC-01/Plate2/B04_s2_w3\.png: channel w3 \(actin\) of well B04, site 2: "
    store = rejected(tiny, place + ".*" + re.escape(message))
    # Only the plate before it is in the store, for the next run.
    assert {key.split("-")[1] for key in store.objects if key.startswith("plates/")} == {"01_Plate1"}
    assert len([key for key in store.objects if key.startswith("copies/")]) == 1
