"""Real screens of other laboratories: read by their layouts, packed, and read back like tifffile and zarr read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from components.core.config import ScreenConfig
from components.core.screen.layouts import read_screen
from components.core.screen.packed import SiteReader
from components.core.screen.packing import pack_plates
from tests.components.core.screen.built_plates import manifest_of, packing_of
from tests.tiny_screen import MemoryStore

SCREENS = Path(__file__).resolve().parents[5] / "shared" / "screens"
Expected = Callable[[Path, str, int, str, int], NDArray[Any]]
"""A channel's pixels by the screen's folder, well, site, and the channel's name and number."""


def imagexpress(folder: str) -> Expected:
    return lambda root, well, site, _, number: np.max(
        [tifffile.imread(path) for path in root.glob(f"{folder}/9987_{well}_s{site}_w{number}.TIF")], axis=0
    )


def phenix(folder: str) -> Expected:
    return lambda root, _well, site, _, number: tifffile.imread(
        root / folder / f"r03c03f{site:02d}p01-ch{number}sk1fk1fl1.tiff"
    )


def cytation(root: Path, well: str, _site: int, channel: str, _number: int) -> NDArray[Any]:
    (path,) = root.glob(f"{well[0]}{int(well[1:])}_01_*_{channel}_001.tif")
    return tifffile.imread(path)


def omezarr(root: Path, well: str, site: int, _: str, number: int) -> NDArray[Any]:
    image = zarr.open_array(root / "plate_ones.zarr" / well[0] / well[1:] / str(site - 1) / "0", mode="r")
    return image[number - 1].max(axis=0)


CASES: dict[str, tuple[str, dict[str, Any], Expected, int]] = {
    "a time point": ("imagexpress/9987_Plate_3435", {"time_point": 2}, imagexpress("TimePoint_2"), 4),
    "projected stacks": (
        "imagexpress/9987_Plate_3434",
        {"z": "max"},
        imagexpress("TimePoint_1/ZStep_[1-9]"),
        2,
    ),
    "Harmony": ("harmony", {}, phenix("Images"), 2),
    "Phenix": ("jump_phenix", {}, phenix(""), 1),
    "names of channels": ("nf1", {"channels": ("RFP", "DAPI", "GFP")}, cytation, 5),
    "OME-Zarr": ("omezarr", {"z": "max"}, omezarr, 1),
}


@pytest.mark.skipif(not SCREENS.is_dir(), reason="no real screens beside the repository")
@pytest.mark.parametrize("case", CASES)
def test_packed_pixels_are_those_of_the_files(tmp_path: Path, case: str):
    name, changes, expected, least = CASES[case]
    wells = "".join(f"{row}{column},g{row}{column}\n" for row in "BCDFH" for column in range(1, 25))
    (tmp_path / "map.csv").write_text(f"well,gene\n{wells}")
    root = SCREENS / name
    config = ScreenConfig(cell_types=("cells",), plate_map=str(tmp_path / "map.csv"), missing_images="drop").model_copy(
        update=changes
    )
    screen, store = read_screen(root, config), MemoryStore()
    packing = packing_of(root, screen, store)
    manifest = manifest_of(screen, packing, list(pack_plates(packing, screen.plates)))
    sites = [(well.well, site.site) for plate in manifest.plates for well in plate.wells for site in well.sites]
    assert len(sites) >= least
    for row, (well, site) in enumerate(sites):
        (found_CHW,) = SiteReader(store, manifest, verify=True).read([row])
        for number, (channel, found_HW) in enumerate(zip(manifest.channels, found_CHW, strict=True), start=1):
            np.testing.assert_array_equal(found_HW, expected(root, well, site, channel, number))
