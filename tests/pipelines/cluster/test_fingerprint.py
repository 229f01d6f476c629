"""The fingerprint of a screen changes if a table or an image is rewritten, and only then."""

from __future__ import annotations

import os

import pytest

from components.core.config import ScreenConfig
from components.core.errors import InputError
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import ScreenDirectory
from pipelines.cluster.checks import fingerprint
from tests.tiny_screen import SIZE, TinyScreen

CONFIG = ScreenConfig(cell_types=("HUVEC",), image_size=SIZE, sites=2)


def of(tiny: TinyScreen) -> str:
    source = ScreenDirectory(tiny.root)
    return fingerprint(source, read_screen(source, CONFIG))


def test_it_changes_with_every_file_and_nothing_else(tiny_screen: TinyScreen):
    first = of(tiny_screen)
    assert of(tiny_screen) == first
    image = tiny_screen.root / "train" / "HUVEC-02" / "Plate2" / "C02_s2_w6.png"
    table = tiny_screen.root / "test.csv"
    for file in (image, table):
        os.utime(file, ns=(1, 1))  # written again, with the same size
        changed = of(tiny_screen)
        assert changed != first
        first = changed
    (image.parent / "notes.txt").write_text("beside the images of the tables' wells")
    assert of(tiny_screen) == first
    image.unlink()
    with pytest.raises(InputError, match="HUVEC-02_2_C02 site 2 lacks Golgi"):  # before any pod starts
        of(tiny_screen)
