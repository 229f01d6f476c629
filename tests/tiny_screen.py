"""A screen of a few random 16-pixel images in the Kaggle layout, and a store in memory. For tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.core.config import CHANNELS, FoldsConfig, RunConfig, ScreenConfig, SimulatedLayout
from components.core.errors import MissingObjectError
from components.core.screen.plane_header import ImageForm
from components.core.screen.simulation.layouts import COLUMNS, LAYOUTS, SitePlace

SIZE = 16
LABELLED = ("HUVEC-01", "HUVEC-02", "RPE-01")
UNLABELLED = ("HUVEC-03",)
PLATES = (1, 2)
TREATMENTS = {1: ("sirna_7", "sirna_30", "sirna_2"), 2: ("sirna_100", "sirna_11", "sirna_9")}
TREATED_WELLS = ("B03", "B04", "C02")
CONTROLS = (("B02", "UNTREATED", "negative_control"), ("C03", "sirna_5", "positive_control"))
CONFIG = RunConfig(
    screen=ScreenConfig(cell_types=("HUVEC", "RPE"), image_size=SIZE, sites=2), folds=FoldsConfig(count=2)
)
IMAGED = CONFIG.screen.model_copy(update={"missing_images": "drop"})
"""Reads the imaged experiments of a screen alone."""


FORM = ImageForm(CHANNELS, (SIZE, SIZE), "uint8")


def site_pixels(experiment: str, plate: int | str, well: str, site: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(zlib.crc32(f"{experiment} {plate} {well} {site}".encode()))
    return rng.integers(1, 256, (6, SIZE, SIZE), dtype=np.uint8)


def site_table(labelled: Iterable[str] = LABELLED, unlabelled: Iterable[str] = UNLABELLED) -> pd.DataFrame:
    """The typed table of the sites of some experiments; the labels of unlabelled treatments are given."""
    rows = []
    for experiment in (*labelled, *unlabelled):
        for plate in PLATES:
            treated = ((well, label, "treatment") for well, label in zip(TREATED_WELLS, TREATMENTS[plate], strict=True))
            for well, label, role in (*treated, *CONTROLS):
                place = (experiment, str(plate), well)
                known = (role, label, experiment.split("-")[0], experiment not in unlabelled)
                rows += [(*place, site, *known) for site in (1, 2)]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_screen(
    root: Path, table: pd.DataFrame, layout: SimulatedLayout, imaged: Sequence[str], named: bool = False
) -> None:
    """Writes the tables of some sites, and the images of the `imaged` experiments; those of others if `named` as black ones."""
    writer = LAYOUTS[layout]
    root.mkdir(parents=True)
    writer.tables(root, table, FORM)
    for place in map(SitePlace._make, table[list(SitePlace._fields)].itertuples(index=False)):
        if place.experiment in imaged:
            writer.write_site(root, place, FORM.channels, site_pixels(*place[:4]))
        elif named:
            for channel, name in enumerate(FORM.channels):
                path = root / writer.path(place, channel, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(BLACK)


class TinyScreen:
    """Writes the screen below `root`: 4 experiments x 2 plates x 5 wells x 2 sites x 6 channels, in the Kaggle layout.

    A test that reads tables only, or one experiment, names the `imaged` experiments. `more` are labelled experiments beside
    the usual ones. With `named`, images of the other experiments are black, for tests that pack none.
    """

    def __init__(
        self,
        root: Path,
        imaged: Sequence[str] = (*LABELLED, *UNLABELLED),
        more: Sequence[str] = (),
        named: bool = False,
    ) -> None:
        self.root = root
        write_screen(root, site_table((*LABELLED, *more)), "kaggle", imaged, named)

    @staticmethod
    def pixels(experiment: str, plate: int | str, well: str, site: int) -> NDArray[np.uint8]:
        """What the site's files hold, (6, SIZE, SIZE)."""
        return site_pixels(experiment, plate, well, site)

    def image(self, experiment: str, plate: int | str, well: str, site: int, channel: int) -> Path:
        split = "test" if experiment in UNLABELLED else "train"
        return self.root / split / experiment / f"Plate{plate}" / f"{well}_s{site}_w{channel}.png"

    def edit(self, table: str, old: str, new: str) -> None:
        """Replaces the first occurrence of a text that must be there."""
        path = self.root / table
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def drop_wells(self, table: str, beginning: str) -> None:
        """Removes the rows whose id_code starts so."""
        path = self.root / table
        path.write_text("".join(r for r in path.read_text().splitlines(keepends=True) if not r.startswith(beginning)))


def write_png(path: Path, image: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", image)
    assert done
    path.write_bytes(data.tobytes())


def raw_png(size: int, stream: bytes) -> bytes:
    """A well-formed 8-bit grey PNG, all checksums right, around any compressed stream."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


BLACK = raw_png(SIZE, zlib.compress(bytes(SIZE * (SIZE + 1))))
"""A black image."""


class MemoryStore:
    """An ObjectStore over a dictionary.

    Attributes:
        objects: bytes by key.
        puts: keys written so far, in order.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.root = None

    def __deepcopy__(self, _: object) -> MemoryStore:
        copied = MemoryStore()
        copied.objects, copied.puts = dict(self.objects), list(self.puts)
        return copied

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("objects in this process's memory have no address")

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise MissingObjectError(self.uri(key))
        return self.objects[key]

    def view(self, key: str) -> memoryview:
        return memoryview(self.get(key))

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def get_present(self, keys: Sequence[str]) -> dict[str, bytes]:
        return {key: self.objects[key] for key in keys if key in self.objects}

    def put(self, key: str, data: bytes) -> None:
        self.puts.append(key)
        self.objects[key] = bytes(data)

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        for key, data in items:
            self.put(key, data)

    def exists(self, key: str) -> bool:
        return key in self.objects

    def list(self, prefix: str) -> Sequence[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def delete_prefix(self, prefix: str) -> int:
        keys = self.list(prefix)
        for key in keys:
            del self.objects[key]
        return len(keys)

    def uri(self, key: str) -> str:
        return f"s3://memory/{key}"
