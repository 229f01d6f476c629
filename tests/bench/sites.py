"""Inputs of the measurements: sites of 512 pixels, the real RxRx1 ones if they lie beside the repository, else simulated.

Also a screen of any size that repeats them, as PNGs and packed.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from components.core.config import PackConfig, ScreenConfig
from components.core.screen.ome_zarr import encode_chunk
from components.core.screen.simulation.plate_design import USED_WELLS, SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site
from components.core.storage.manifest import Manifest, SiteRecord, WellRecord
from components.core.storage.object_store import ObjectStore
from tests.components.core.manifests import manifest, plate_record

SIZE = 512
CHANNELS = 6
RXRX1 = Path(__file__).resolve().parents[3] / "shared" / "rxrx1" / "images"
_SIMULATED = 18
JUMP = Path(__file__).resolve().parents[3] / "shared" / "screens" / "jump_phenix"
"""A field of a Cell Painting plate: six 16-bit TIFFs of 1080 pixels, LZW."""
TIFF_SIZE = 1080


@functools.cache
def png_sites() -> tuple[tuple[bytes, ...], ...]:
    """The PNG files of each site, in channel order."""
    folders = sorted(RXRX1.glob("*/*/*"))
    if folders:
        return tuple(tuple((f / f"B02_s1_w{c}.png").read_bytes() for c in range(1, 7)) for f in folders)
    settings = SimulationSettings(screen=ScreenConfig(image_size=SIZE))
    plates = design_screen(settings)[:_SIMULATED]
    return tuple(
        tuple(cv2.imencode(".png", image)[1].tobytes() for image in render_site(settings, plate, plate.wells[0], 1))
        for plate in plates
    )


def pixel_sites() -> list[NDArray[np.uint8]]:
    """The pixels of each site, (C, SIZE, SIZE)."""
    return [
        np.stack([cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) for data in site])
        for site in png_sites()
    ]


def origin() -> str:
    """The origin of the sites, for a note."""
    return "real RxRx1 sites" if RXRX1.is_dir() else "simulated sites"


@functools.cache
def tiff_sites(compression: str | None = None) -> tuple[tuple[bytes, ...], ...]:
    """The 16-bit TIFFs of a site, in channel order, as they are or compressed so: real ones if they lie beside the repository."""
    real = sorted(JUMP.glob("*.tiff"))
    if real and compression is None:
        return (tuple(path.read_bytes() for path in real),)
    files = []
    for image_HW in map(tifffile.imread, real) if real else _smooth_images():
        file = io.BytesIO()
        tifffile.imwrite(file, image_HW, compression=compression or "lzw")
        files.append(file.getvalue())
    return (tuple(files),)


def _smooth_images() -> Iterator[NDArray[np.uint16]]:
    rng = np.random.default_rng(0)
    for _ in range(CHANNELS):
        smooth = cv2.GaussianBlur(rng.gamma(1.0, 4000.0, (TIFF_SIZE, TIFF_SIZE)), (0, 0), 8)
        yield (smooth + rng.normal(0, 40, smooth.shape)).clip(0).astype(np.uint16)


def write_screen(
    root: Path, plates: int, wells: int = 16, sites: int = 1, files: tuple[tuple[bytes, ...], ...] | None = None
) -> Path:
    """A labelled screen in the Kaggle layout that repeats the sites; its plates, of HUVEC, are of different experiments."""
    pngs, suffix = files or png_sites(), ".tif" if files else ".png"
    rows = ["id_code,experiment,plate,well,sirna"]
    count = 0
    for p in range(plates):
        experiment = f"HUVEC-{p + 1:02d}"
        folder = root / "train" / experiment / "Plate1"
        folder.mkdir(parents=True)
        for w, well in enumerate(USED_WELLS[:wells]):
            rows.append(f"{experiment}_1_{well},{experiment},1,{well},sirna_{w}")
            for site in range(1, sites + 1):
                for channel, data in enumerate(pngs[count % len(pngs)], start=1):
                    (folder / f"{well}_s{site}_w{channel}{suffix}").write_bytes(data)
                count += 1
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


def packed_screen(
    folder: Path, image_size: int, plates: int, wells: int, chunks: Iterator[bytes] | None = None
) -> tuple[ObjectStore, Manifest]:
    """A packed screen in a folder: plates of `wells` treatment wells of one site each; `chunks` are packed sites, else noise."""
    store, chunks, records = ObjectStore(folder), chunks or _noise(image_size), []
    for p in range(plates):
        own = []
        for w, well in enumerate(USED_WELLS[:wells]):
            chunk, key = next(chunks), str(w)
            store.put(f"plates/{p}/{key}", chunk)
            site = SiteRecord(site=1, key=key, size=len(chunk), sha256=hashlib.sha256(chunk).hexdigest())
            name = f"HUVEC-{p}_1_{well}"
            own.append(WellRecord(id_code=name, well=well, role="treatment", perturbation=f"s{w}", sites=(site,)))
        histograms = (tuple([1] * 60 + [0] * 196),) * CHANNELS
        records.append(plate_record(f"HUVEC-{p}", 1, own, True, f"plates/{p}", histograms=histograms))
    return store, manifest(records, (f"s{w}" for w in range(wells)), image_shape=(image_size, image_size))


def _noise(size: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    while True:
        yield encode_chunk(rng.integers(0, 60, (CHANNELS, size, size), dtype=np.uint8), PackConfig())
