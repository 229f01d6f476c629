"""The files of a plate and the pixels of a site."""

from __future__ import annotations

import numpy as np
import pytest

from components.core.errors import InputError
from components.core.screen.images import list_plate, read_sites
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Plate
from tests.tiny_screen import CONFIG, SIZE, TinyScreen, write_png


@pytest.fixture
def plate(tiny: TinyScreen) -> Plate:
    return read_screen(tiny.root, CONFIG.screen).plates[0]


def test_images_of_unlisted_wells_are_left_out_with_a_warning(tiny: TinyScreen, plate: Plate):
    write_png(tiny.image("HUVEC-01", 1, "O23", 1, 1), np.zeros((SIZE, SIZE), np.uint8))
    (tiny.root / plate.folder / "Thumbs.db").write_bytes(b"")
    files = list_plate(ScreenDirectory(tiny.root), plate, 2)
    assert {s.well for s in files.sites} == {"B02", "B03", "B04", "C02", "C03"}
    assert files.warnings == ("HUVEC-01 plate 1: images of wells that no table lists are left out, well O23",)


@pytest.mark.parametrize(("site", "channel"), [(3, 1), (1, 7)])
def test_rejects_a_site_or_channel_beyond_the_expected(tiny: TinyScreen, plate: Plate, site, channel):
    write_png(tiny.image("HUVEC-01", 1, "B03", site, channel), np.zeros((SIZE, SIZE), np.uint8))
    with pytest.raises(InputError, match=rf"B03_s{site}_w{channel}\.png is unexpected: well B03 has sites 1-2 "):
        list_plate(ScreenDirectory(tiny.root), plate, 2)


def test_rejects_a_file_that_vanished(tiny: TinyScreen, plate: Plate):
    files = list_plate(ScreenDirectory(tiny.root), plate, 2)
    tiny.image("HUVEC-01", 1, "B02", 1, 3).unlink()
    with pytest.raises(InputError, match=r"B02_s1_w3\.png: channel w3 \(actin\) of well B02, site 1: No such file"):
        read_sites(ScreenDirectory(tiny.root), files.folder, files.sites)
