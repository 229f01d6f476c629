"""Packs a few sites of a plate: image files in, chunks in the store out. All of the packing that takes time.

A batch's task and result hold names, sizes, digests and counts, so that another process can pack it and no pixel crosses over.
A third of the work holds Python's lock (png.py), which is why several cores pack in processes. C channels, S side.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS, PackConfig
from components.core.screen import ome_zarr
from components.core.screen.histograms import BINS, count_greys
from components.core.screen.images import PlateFiles, PlateFolder, SiteFiles, check_image, decode_image, read_sites
from components.core.screen.screen_source import ScreenSource

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

BATCH = 4
"""Sites of a batch: with six images each, enough requests in flight together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A task.

    Attributes:
        folder: the plate's, relative to the screen.
        keys: keys of the sites' chunks; empty if the files are only to be checked.
    """

    folder: str
    sites: tuple[SiteFiles, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedSite:
    """A packed site; of one that was only checked, `images` alone.

    Attributes:
        images: checksum of each image file, in channel order.
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
    """A result.

    Attributes:
        sites: in the batch's order.
        histogram_C256: pixel counts over all of them, int64.
    """

    sites: tuple[PackedSite, ...]
    histogram_C256: NDArray[np.int64]


class BatchPacker:
    """Packs batches from one source into one store; several threads may call it, and it pickles for other processes.

    Args:
        source: the screen.
        store: receives the chunks.
        image_size: side of the images, pixels.
        pack: codec settings.
        computing: held while a site is decoded and compressed; a semaphore keeps threads that compute down to the number
            of cores, since more would push each other's pixels out of the caches.
    """

    def __init__(
        self,
        source: ScreenSource,
        store: ObjectStore,
        image_size: int,
        pack: PackConfig,
        computing: AbstractContextManager[object] | None = None,
    ) -> None:
        self._source, self._store = source, store
        self._image_size, self._pack = image_size, pack
        self._computing = computing or nullcontext()

    def __call__(self, batch: Batch) -> PackedBatch:
        """Reads, checks, decodes, counts, compresses and writes the sites; returns when all are written.

        Raises:
            InputError: an image cannot be read, is damaged or of another kind or size; sites before it are written.
        """
        folder = PlateFolder(self._source, batch.folder)
        contents = read_sites(folder, batch.sites)
        total_C256 = np.zeros((len(CHANNELS), BINS), np.int64)
        packed: list[PackedSite] = []
        if not batch.keys:
            for site, files in zip(batch.sites, contents, strict=True):
                checksums = (check_image(folder, site, *each, self._image_size) for each in enumerate(files))
                packed.append(PackedSite(tuple(checksums)))
            return PackedBatch(tuple(packed), total_C256)

        def chunks() -> Iterator[tuple[str, bytes]]:
            for site, files, key in zip(batch.sites, contents, batch.keys, strict=True):
                with self._computing:
                    chunk, result, counts_C256 = encode_site(folder, site, files, self._image_size, self._pack)
                np.add(total_C256, counts_C256, out=total_C256)
                packed.append(result)
                yield key, chunk

        self._store.put_many(chunks())
        return PackedBatch(tuple(packed), total_C256)


def encode_site(
    plate: PlateFolder, site: SiteFiles, contents: Sequence[bytes], image_size: int, pack: PackConfig
) -> tuple[bytes, PackedSite, NDArray[np.int64]]:
    """Checks, decodes, counts and compresses a site.

    Args:
        plate: the site's plate.
        site: names of its files.
        contents: their bytes in channel order.
        image_size: expected side, pixels.
        pack: codec settings.

    Returns:
        The chunk, its description and the pixel counts, int64 (C, 256).

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
    chunk = ome_zarr.encode_chunk(pixels_CSS, pack)
    black = tuple(np.flatnonzero(counts_C256[:, 0] == image_size * image_size).tolist())
    return chunk, PackedSite(tuple(images), len(chunk), hashlib.sha256(chunk).hexdigest(), black), counts_C256


_scratch = threading.local()


def _pixels(channels: int, size: int) -> NDArray[np.uint8]:
    """This thread's array (C, S, S), reused: fresh memory costs a page fault every 4 KiB."""
    known: NDArray[np.uint8] | None = getattr(_scratch, "pixels_CSS", None)
    if known is None or known.shape != (channels, size, size):
        known = _scratch.pixels_CSS = np.empty((channels, size, size), np.uint8)
    return known


def batches(files: PlateFiles, keys: Sequence[str] = ()) -> Iterator[Batch]:
    """A plate's sites in order, a few a batch.

    Args:
        files: the plate's.
        keys: keys of the sites' chunks; none if the files are only to be checked.
    """
    sites, rest = iter(files.sites), iter(keys)
    while some := tuple(islice(sites, BATCH)):
        yield Batch(files.folder, some, tuple(islice(rest, len(some))))


def chunk_keys(files: PlateFiles) -> list[str]:
    """The key of each site's chunk, relative to the plate; a site's field is its index among the sites of its well."""
    keys, fields = [], dict[str, int]()
    for site in files.sites:
        field = fields.get(site.well, 0)
        fields[site.well] = field + 1
        keys.append(ome_zarr.chunk_key(site.well, field))
    return keys
