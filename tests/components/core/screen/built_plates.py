"""Plates without a layout: TIFFs of any form in a folder, and the plate that names them. For tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from components.core.config import PackConfig
from components.core.screen.batches import Packing
from components.core.screen.images import image_form
from components.core.screen.manifests import build_manifest
from components.core.screen.packing import PackResult, pack_plates
from components.core.screen.screen_source import ScreenDirectory
from components.core.screen.wells import Plane, Plate, Screen, Site, Well
from components.core.storage.manifest import Manifest, Role, Vocabulary
from tests.tiny_screen import MemoryStore

SHAPE = (3, 20, 28)
WELLS: dict[str, tuple[Role, str]] = {
    "A01": ("negative_control", "DMSO"), "A02": ("treatment", "x"), "AA48": ("treatment", "y"),
}  # fmt: skip


def site_of(well: str, site: int, shape: tuple[int, ...] = SHAPE, dtype: Any = np.uint16) -> NDArray[Any]:
    rng = np.random.default_rng(sum(map(ord, well)) + 1000 * site)
    return rng.gamma(2.0, 300.0 if dtype == np.uint16 else 20.0, shape).clip(1, np.iinfo(dtype).max).astype(dtype)


def write_plate(
    root: Path,
    name: str = "BR_1",
    wells: Mapping[str, tuple[Role, str]] = WELLS,
    shape: tuple[int, ...] = SHAPE,
    dtype: Any = np.uint16,
    sites: int = 2,
    experiment: str = "batch",
    **tiff: Any,
) -> Plate:
    """A plate with a TIFF a channel."""
    found = []
    for well, (role, perturbation) in wells.items():
        of_well = []
        for site in range(1, sites + 1):
            planes = []
            for channel, pixels in enumerate(site_of(well, site, shape, dtype)):
                path = root / name / f"{well}_f{site}_c{channel}.TIFF"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, pixels, **tiff)
                planes.append((Plane(f"{name}/{path.name}"),))
            of_well.append(Site(site, tuple(planes)))
        found.append(Well(f"{experiment}_{name}_{well}", well, role, perturbation, tuple(of_well)))
    return Plate(experiment, name, "A549", True, False, tuple(found))


def screen_of(*plates: Plate, channels: tuple[str, ...] = ("DNA", "ER", "RNA")) -> Screen:
    vocabulary = Vocabulary(treatments=("x", "y"), positives=(), negatives=("DMSO",))
    return Screen(plates, vocabulary, channels=channels)


def packing_of(root: Path, screen: Screen, store: Any, **pack: Any) -> Packing:
    source = ScreenDirectory(root)
    return Packing(source, image_form(source, screen, None), PackConfig(**pack), store)


def pack(root: Path, *plates: Plate, store: Any = None, **fields: Any) -> tuple[Manifest, MemoryStore]:
    """The packed plates' manifest and store."""
    screen, store = screen_of(*plates), MemoryStore() if store is None else store
    packing = packing_of(root, screen, store, **fields)
    return manifest_of(screen, packing, list(pack_plates(packing, plates))), store


def manifest_of(screen: Screen, packing: Packing, results: list[PackResult]) -> Manifest:
    packed = {(plate.experiment, plate.plate): result for plate, result in zip(screen.plates, results, strict=True)}
    return build_manifest(screen, packed, packing, holdout=False, folds={}, well_folds={}, warnings=())
