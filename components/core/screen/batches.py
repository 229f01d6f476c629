"""Packs a few sites of a plate: image files in, chunks in the store out. All of the packing that takes time.

A batch's task and result hold names, sizes, digests and counts, so that another process can pack it and no pixel crosses over.
C channels, S side.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS, PackConfig
from components.core.screen import ome_zarr
from components.core.screen.histograms import BINS, count_greys
from components.core.screen.images import PlateFiles, PlateFolder, SiteFiles, check_image, decode_image, read_sites
from components.core.screen.ome_zarr import encode_chunk
from components.core.screen.screen_source import ScreenSource
from components.core.storage.interface import ObjectWriter

BATCH = 4
"""Sites of a batch; with six images each, enough requests to be in flight together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be done.

    Attributes:
        folder: of the plate, relative to the screen.
        keys: of the sites' chunks; empty where the files are only to be checked and told apart.
    """

    folder: str
    sites: tuple[SiteFiles, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedSite:
    """What is known of a site once it is packed, or only checked; then it has no chunk.

    Attributes:
        images: what tells each image file from others of its size, in channel order.
        size: of the chunk, bytes.
        sha256: of the chunk.
        black: channels that are all black, from 0.
    """

    images: tuple[str, ...]
    size: int = 0
    sha256: str = ""
    black: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """What was done.

    Attributes:
        sites: in the batch's order.
        histogram_C256: pixel counts over all of them, int64.
    """

    sites: tuple[PackedSite, ...]
    histogram_C256: NDArray[np.int64]


class BatchPacker:
    """Packs batches from one place into one store; called from many threads, and pickled for other processes."""

    def __init__(self, place: ScreenSource, store: ObjectWriter, image_size: int, pack: PackConfig, cores: int) -> None:
        """Keeps what all batches share.

        Args:
            place: the screen's.
            store: receives the chunks.
            image_size: side of the images, pixels.
            pack: codec settings.
            cores: threads that compute at a time; the others wait for files or the store, or for their turn. More would
                push each other's pixels out of the caches.
        """
        self._place, self._store = place, store
        self._image_size, self._pack = image_size, pack
        self._cores = cores
        self._turns = threading.Semaphore(cores)

    def __reduce__(self) -> tuple[type[BatchPacker], tuple[object, ...]]:
        return BatchPacker, (self._place, self._store, self._image_size, self._pack, self._cores)

    def __call__(self, batch: Batch) -> PackedBatch:
        """Reads, checks, decodes, counts, compresses and writes; returns when all is written.

        Raises:
            InputError: an image cannot be read, is damaged or of another kind or size; sites before it are written.
        """
        folder = PlateFolder(self._place, batch.folder)
        contents = read_sites(folder, batch.sites)
        total_C256 = np.zeros((len(CHANNELS), BINS), np.int64)
        packed: list[PackedSite] = []
        if not batch.keys:
            for site, of_site in zip(batch.sites, contents, strict=True):
                marks = (check_image(folder, site, *each, self._image_size) for each in enumerate(of_site))
                packed.append(PackedSite(tuple(marks)))
            return PackedBatch(tuple(packed), total_C256)

        def chunks() -> Iterator[tuple[str, bytes]]:
            for site, of_site, key in zip(batch.sites, contents, batch.keys, strict=True):
                with self._turns:
                    coded = code_site(folder, site, of_site, self._image_size, self._pack)
                np.add(total_C256, coded.histogram_C256, out=total_C256)
                packed.append(PackedSite(coded.images, len(coded.chunk), coded.sha256, coded.black))
                yield key, coded.chunk

        self._store.put_many(chunks())
        return PackedBatch(tuple(packed), total_C256)


def batches(files: PlateFiles, keys: Sequence[str] = ()) -> Iterator[Batch]:
    """A plate's sites in order, a few a batch.

    Args:
        files: the plate's.
        keys: of the sites' chunks; none where the files are only to be checked and told apart.
    """
    sites, names = iter(files.sites), iter(keys)
    while some := tuple(islice(sites, BATCH)):
        yield Batch(files.folder, some, tuple(islice(names, len(some))))


def chunk_keys(files: PlateFiles) -> list[str]:
    """The key of each site's chunk, relative to the plate; a site's field is its place among those of its well."""
    keys, fields = [], dict[str, int]()
    for site in files.sites:
        field = fields.get(site.well, 0)
        fields[site.well] = field + 1
        keys.append(ome_zarr.chunk_key(site.well, field))
    return keys


_scratch = threading.local()


@dataclass(frozen=True, slots=True)
class CodedSite:
    """A site as it is written.

    Attributes:
        sha256: of the chunk.
        images: what tells each image file from others of its size, in channel order.
        histogram_C256: pixel counts, int64.
        black: channels that are all black, from 0.
    """

    chunk: bytes
    sha256: str
    images: tuple[str, ...]
    histogram_C256: NDArray[np.int64]
    black: tuple[int, ...]


def code_site(
    plate: PlateFolder, site: SiteFiles, contents: Sequence[bytes], image_size: int, pack: PackConfig
) -> CodedSite:
    """Checks, decodes, counts and compresses a site.

    Args:
        plate: the site's.
        site: which site.
        contents: its files' bytes in channel order.
        image_size: expected side, pixels.
        pack: codec settings.

    Raises:
        InputError: an image is damaged or of another kind or size.
    """
    pixels_CSS = _pixels(len(contents), image_size)
    counts_C256 = np.empty((len(contents), BINS), np.int64)
    images = []
    for channel, content in enumerate(contents):
        images.append(check_image(plate, site, channel, content, image_size))
        decode_image(plate, site, channel, content, pixels_CSS[channel])
        count_greys(pixels_CSS[channel], counts_C256[channel])  # now, while it is in the cache
    chunk = encode_chunk(pixels_CSS, pack)
    black = tuple(np.flatnonzero(counts_C256[:, 0] == image_size * image_size).tolist())
    return CodedSite(chunk, hashlib.sha256(chunk).hexdigest(), tuple(images), counts_C256, black)


def _pixels(channels: int, size: int) -> NDArray[np.uint8]:
    """This thread's array (C, S, S), used again and again: fresh memory costs a page fault every 4 KiB."""
    known: NDArray[np.uint8] | None = getattr(_scratch, "pixels_CSS", None)
    if known is None or known.shape != (channels, size, size):
        known = _scratch.pixels_CSS = np.empty((channels, size, size), np.uint8)
    return known
