"""The 18 real RxRx1 sites beside the repository: packed without loss."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from components.core.config import FoldsConfig, ScreenConfig
from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest
from components.normalize.config import NormalizeConfig
from components.normalize.step import run
from tests.tiny_screen import MemoryStore

RXRX1 = Path(__file__).resolve().parents[4] / ".." / "shared" / "rxrx1"
pytestmark = pytest.mark.skipif(not RXRX1.is_dir(), reason="the RxRx1 images are not beside the repository")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryStore, Manifest]:
    """The imaged wells as a screen. Experiments need a treatment, so B03 has the images of B02."""
    root = tmp_path_factory.mktemp("rxrx1")
    for table in ("train", "test", "train_controls", "test_controls"):
        with (RXRX1 / f"{table}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        kept = []
        for row in rows:
            _, experiment, plate, well, *_ = row
            folder = RXRX1 / "images" / table.split("_")[0] / experiment / f"Plate{plate}"
            if folder.is_dir() and well in ("B02", "B03"):
                kept.append(row)
                target = root / table.split("_")[0] / experiment / f"Plate{plate}"
                target.mkdir(parents=True, exist_ok=True)
                for channel in range(1, 7):
                    shutil.copy(folder / f"B02_s1_w{channel}.png", target / f"{well}_s1_w{channel}.png")
        with (root / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])
    store = MemoryStore()
    config = NormalizeConfig(screen=ScreenConfig(sites=1), folds=FoldsConfig(count=4))
    run(config, root, store, root / "screen.json", root / "holdout.json", root / "labels.csv")
    return store, Manifest.read(root / "screen.json")


def pixels(experiment: str, plate: int) -> NDArray[np.uint8]:
    """The plate's site, decoded by another library."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (folder,) = (RXRX1 / "images").glob(f"*/{experiment}/Plate{plate}")
    return np.stack([np.asarray(image.open(folder / f"B02_s1_w{channel}.png")) for channel in range(1, 7)])


def test_all_real_sites_come_back_bit_for_bit(real: tuple[MemoryStore, Manifest]):
    store, manifest = real
    assert len(manifest.plates) == 18
    reader = SiteReader(store, manifest, verify=True)
    table = reader.table
    controls = np.flatnonzero(table.well_W[table.well_S] == "B02")
    assert len(controls) == 18
    for site, read in zip(controls, reader.read(controls), strict=True):
        plate = manifest.plates[table.plate_W[table.well_S[site]]]
        assert np.array_equal(read, pixels(plate.experiment, plate.plate))
