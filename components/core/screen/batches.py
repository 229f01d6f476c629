"""Packs a few sites of a plate: image files in, chunks in the store out. All of the packing that takes time.

A batch and its result hold names, sizes, digests and counts: if another process packs it, no pixel crosses over. A third of
the work holds Python's lock (png.py), which is why several cores pack in processes. C channels, S side.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.core.config import PackConfig
from components.core.screen import ome_zarr
from components.core.screen.histograms import BINS, count_greys
from components.core.screen.images import PlateFiles, SiteFiles, decode_channel, file_checksums, read_sites
from components.core.screen.screen_source import ScreenSource
from components.core.storage.manifest import SiteRecord

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

BATCH = 4
"""Sites of a batch: with six images each, enough requests in flight together."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a screen is packed."""

    source: ScreenSource
    channels: tuple[str, ...]  # names
    image_size: int  # side of the images, pixels
    pack: PackConfig
    store: ObjectStore  # receives the plates


@dataclass(frozen=True, slots=True)
class Batch:
    """Some sites of a plate."""

    sites: tuple[SiteFiles, ...]
    prefix: str  # the plate's key prefix; empty if the files are only to be checked


def batches(files: PlateFiles, prefix: str) -> Iterator[Batch]:
    """A plate's sites in order, a few a batch."""
    sites = iter(files.sites)
    while some := tuple(islice(sites, BATCH)):
        yield Batch(some, prefix)


@dataclass(frozen=True, slots=True)
class PackedSite:
    """A packed or checked site."""

    images: tuple[str, ...]  # checksum of each image file, in order of SiteFiles.paths
    record: SiteRecord | None = None  # of the chunk; None if the site was only checked
    black: tuple[int, ...] = ()  # channels that are all black, from 0


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """What packing a batch returns."""

    sites: tuple[PackedSite, ...]  # in the batch's order
    histogram_C256: NDArray[np.int64]  # pixel counts over all of them


class BatchPacker:
    """Packs batches; several threads may call it, and it pickles for other processes.

    Args:
        packing: source, store and settings.
        computing: held while a site is decoded and compressed; a semaphore keeps threads that compute down to the number
            of cores, since more would push each other's pixels out of the caches.
    """

    def __init__(self, packing: Packing, computing: AbstractContextManager[object] | None = None) -> None:
        self._packing, self._computing = packing, computing or nullcontext()

    def __call__(self, batch: Batch) -> PackedBatch:
        """Reads, checks, decodes, counts, compresses and writes the sites; returns when all are written.

        Raises:
            InputError: an image cannot be read, is damaged or of another kind or size; sites before it are written.
        """
        contents = read_sites(self._packing.source, batch.sites)
        total_C256 = np.zeros((len(self._packing.channels), BINS), np.int64)
        packed: list[PackedSite] = []
        if not batch.prefix:
            for site, files in zip(batch.sites, contents, strict=True):
                packed.append(PackedSite(self._checksums(site, files)))
            return PackedBatch(tuple(packed), total_C256)

        def chunks() -> Iterator[tuple[str, bytes]]:
            for site, files in zip(batch.sites, contents, strict=True):
                with self._computing:
                    key, chunk, result, counts_C256 = self._encode(site, files)
                np.add(total_C256, counts_C256, out=total_C256)
                packed.append(result)
                yield f"{batch.prefix}/{key}", chunk

        self._packing.store.put_many(chunks())
        return PackedBatch(tuple(packed), total_C256)

    def _checksums(self, site: SiteFiles, contents: Mapping[str, bytes]) -> tuple[str, ...]:
        packing = self._packing
        return tuple(file_checksums(packing.source, site, contents, packing.image_size, packing.channels))

    def _encode(
        self, site: SiteFiles, contents: Mapping[str, bytes]
    ) -> tuple[str, bytes, PackedSite, NDArray[np.int64]]:
        """A site's key relative to the plate, its chunk, description and pixel counts, int64 (C, 256)."""
        packing, size = self._packing, self._packing.image_size
        pixels_CSS = _pixels(len(packing.channels), size)
        counts_C256 = np.empty((len(packing.channels), BINS), np.int64)
        images = self._checksums(site, contents)
        for channel in range(len(packing.channels)):
            decode_channel(packing.source, site, channel, contents, pixels_CSS[channel], packing.channels)
            count_greys(pixels_CSS[channel], counts_C256[channel])  # now, while it is in the cache
        chunk, key = ome_zarr.encode_chunk(pixels_CSS, self._packing.pack), ome_zarr.chunk_key(site.well, site.field)
        record = SiteRecord(site=site.site, key=key, size=len(chunk), sha256=hashlib.sha256(chunk).hexdigest())
        black = tuple(np.flatnonzero(counts_C256[:, 0] == size * size).tolist())
        return key, chunk, PackedSite(images, record, black), counts_C256


_scratch = threading.local()


def _pixels(channels: int, size: int) -> NDArray[np.uint8]:
    """This thread's array (C, S, S), reused: fresh memory costs a page fault every 4 KiB."""
    known: NDArray[np.uint8] | None = getattr(_scratch, "pixels_CSS", None)
    if known is None or known.shape != (channels, size, size):
        known = _scratch.pixels_CSS = np.empty((channels, size, size), np.uint8)
    return known
