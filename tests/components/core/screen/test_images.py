"""The files of a plate and the pixels of a site."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from components.core.config import CHANNELS
from components.core.errors import InputError
from components.core.screen.images import SiteFiles, decode_channel, plate_files, read_sites
from components.core.screen.layouts import read_screen
from components.core.screen.screen_source import FileFacts, ScreenDirectory
from components.core.screen.wells import Plane, Plate, Site, Well
from tests.tiny_screen import IMAGED, SIZE, TinyScreen, site_pixels, write_png


@pytest.fixture
def plate(tiny: TinyScreen) -> Plate:
    return read_screen(tiny.root, IMAGED).plates[0]


def test_only_files_of_the_tables_wells_are_listed(tiny: TinyScreen, plate: Plate):
    write_png(tiny.image("HUVEC-01", 1, "O23", 1, 1), np.zeros((SIZE, SIZE), np.uint8))
    tiny.image("HUVEC-01", 1, "B03", 1, 1).with_name("Thumbs.db").write_bytes(b"")
    files = plate_files(ScreenDirectory(tiny.root), plate)
    assert {site.well for site in files.sites} == {"B02", "B03", "B04", "C02", "C03"}
    assert len(files.facts) == 5 * 2 * 6
    assert [files.name(path) for path in files.sites[0].paths] == [f"B02_s1_w{channel}.png" for channel in range(1, 7)]


def test_files_that_vanished_are_named_together(tiny: TinyScreen, plate: Plate):
    files = plate_files(ScreenDirectory(tiny.root), plate)
    tiny.image("HUVEC-01", 1, "B02", 1, 3).unlink()
    with pytest.raises(InputError, match=r"B02_s1_w3\.png: channel 3 \(actin\) of well B02, site 1: No such file"):
        read_sites(ScreenDirectory(tiny.root), files.sites, CHANNELS)
    tiny.image("HUVEC-01", 1, "C03", 2, 1).unlink()
    with pytest.raises(InputError, match=r"missing image files: 2 faults: .*B02_s1_w3\.png .*C03_s2_w1\.png"):
        plate_files(ScreenDirectory(tiny.root), plate)


def test_a_channel_of_several_planes_is_their_maximum(tiny: TinyScreen):
    paths = [tiny.image("HUVEC-01", 1, "B02", site, 1) for site in (1, 2)]
    planes = tuple(Plane(str(path.relative_to(tiny.root))) for path in paths)
    site = SiteFiles("B02", 1, 0, ((planes[0],), planes))
    source = ScreenDirectory(tiny.root)
    (contents,) = read_sites(source, [site], ["a", "b"])
    found_HW = np.empty((SIZE, SIZE), np.uint8)
    decode_channel(source, site, 1, contents, found_HW, ["a", "b"])
    first, second = (site_pixels("HUVEC-01", 1, "B02", number)[0] for number in (1, 2))
    assert np.array_equal(found_HW, np.maximum(first, second))


def test_images_of_a_large_zarr_plate_are_looked_up_at_once(tmp_path: Path):
    class Listed(ScreenDirectory):
        def list_trees(self, folders):
            return [FileFacts(f"{folder}/0/c/0/0", 1, "1") for folder in folders if not folder.endswith("/7")]

    def plate(paths: Iterable[str]) -> Plate:
        sites = tuple(Site(n + 1, ((Plane(path),),)) for n, path in enumerate(paths))
        return Plate("E", "P", "cells", True, False, (Well("E_P_A01", "A01", "treatment", "a", sites),))

    begun = time.perf_counter()
    files = plate_files(Listed(tmp_path), plate(f"P.zarr/A/{n}/0" for n in range(20_000)))
    assert len(files.facts) == 20_000
    assert time.perf_counter() - begun < 10, "comparing all with all takes minutes"
    with pytest.raises(InputError, match=r"missing image file: .*P\.zarr/A/1/7"):
        plate_files(Listed(tmp_path), plate(["P.zarr/A/1/0", "P.zarr/A/1/7"]))
