"""Packs a few sites of a plate: image files in, chunks in the store out. All of the packing that takes time.

A batch and its result hold names, sizes, digests and counts: if another process packs it, no pixel crosses over. A third of
the work holds Python's lock (png.py), which is why several cores pack in processes. C channels, H and W pixels, G grey values.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.core.config import PackConfig
from components.core.errors import InputError, joined
from components.core.screen import ome_zarr
from components.core.screen.histograms import GREYS, count_greys
from components.core.screen.images import Contents, PlateFiles, SiteFiles, decode_channel, file_checksums, read_sites
from components.core.screen.plane_header import ImageForm, Pixels
from components.core.screen.screen_source import ScreenSource
from components.core.screen.zarr_images import count_chunks
from components.core.storage.manifest import SiteRecord

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

BATCH = 4
"""Sites of a batch: with six images each, enough requests in flight together."""

Range = tuple[int, int]
"""Grey values of the image files that are 0 and 255 in a rescaled plate."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a screen is packed."""

    source: ScreenSource
    form: ImageForm  # of the image files
    pack: PackConfig
    store: ObjectStore  # receives the plates

    @property
    def rescales(self) -> bool:
        """Whether 16-bit pixels are rescaled to 8 bits."""
        return self.form.dtype == "uint16" and self.pack.bits == 8

    @property
    def packed_form(self) -> ImageForm:
        """The form of the packed pixels."""
        return replace(self.form, dtype="uint8") if self.rescales else self.form


class Work(Enum):
    """What is done with the sites of a batch."""

    CHECK = auto()  # files' checksums, from which copies of a packed plate are known
    COUNT = auto()  # the pixels' grey values, from which a plate's ranges follow
    PACK = auto()


@dataclass(frozen=True, slots=True)
class Batch:
    """Some sites of a plate."""

    sites: tuple[SiteFiles, ...]
    work: Work
    prefix: str = ""  # the plate's key prefix, to pack
    controls: frozenset[str] = frozenset()  # the plate's control wells, which are counted by themselves too
    ranges: tuple[Range, ...] = ()  # of each channel, to rescale


def batches(files: PlateFiles, like: Batch) -> Iterator[Batch]:
    """A plate's sites in order, a few a batch that is otherwise like another."""
    sites = iter(files.sites)
    while some := tuple(islice(sites, BATCH)):
        yield replace(like, sites=some)


@dataclass(frozen=True, slots=True)
class PackedSite:
    """A packed or checked site."""

    images: tuple[str, ...]  # checksum of each image file, in order of SiteFiles.paths
    record: SiteRecord | None = None  # of the chunk; None if the site was not packed
    black: tuple[int, ...] = ()  # channels that are all black, from 0
    chunks: tuple[int, int] = (0, 0)  # of OME-Zarr images: how many do not exist, of how many


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """What packing a batch returns."""

    sites: tuple[PackedSite, ...]  # in the batch's order
    histogram_CG: NDArray[np.int64] | None  # pixel counts over all of them; None if they were only checked
    controls_CG: NDArray[np.int64] | None  # over those of control wells; None if there are none


class BatchPacker:
    """Packs batches; several threads may call it, and it pickles for other processes.

    Args:
        packing: source, store and settings.
        computing: held while a site is decoded and compressed; a semaphore keeps threads that compute down to the number
            of cores, since more would push each other's pixels out of the caches.
    """

    def __init__(self, packing: Packing, computing: AbstractContextManager[object] | None = None) -> None:
        self._packing, self._computing = packing, computing or nullcontext()
        self._channels = packing.form.channels

    def __call__(self, batch: Batch) -> PackedBatch:
        """Reads and checks the sites' files, and decodes, counts, compresses and writes as the batch says.

        Returns when all is written.

        Raises:
            InputError: images cannot be read, are damaged or of another kind, size or bit depth; other sites are written.
        """
        contents = read_sites(self._packing.source, batch.sites, self._channels)
        packed: list[PackedSite] = []
        if batch.work is Work.CHECK:
            packed = [PackedSite(self._checksums(*each)) for each in zip(batch.sites, contents, strict=True)]
            return PackedBatch(tuple(packed), None, None)
        greys = GREYS[(self._packing.packed_form if batch.work is Work.PACK else self._packing.form).dtype]
        total_CG = np.zeros((len(self._channels), greys), np.int64)
        controls_CG = np.zeros_like(total_CG) if any(site.well in batch.controls for site in batch.sites) else None

        broken: list[InputError] = []

        def chunks() -> Iterator[tuple[str, bytes]]:
            for site, files in zip(batch.sites, contents, strict=True):
                with self._computing:
                    try:
                        images, pixels_CHW, counts_CG = self._decoded(site, files, batch.ranges)
                    except InputError as error:
                        broken.append(error)
                        continue
                    chunk = ome_zarr.encode_chunk(pixels_CHW, self._packing.pack) if batch.work is Work.PACK else b""
                np.add(total_CG, counts_CG, out=total_CG)
                if controls_CG is not None and site.well in batch.controls:
                    np.add(controls_CG, counts_CG, out=controls_CG)
                black = tuple(np.flatnonzero(counts_CG[:, 0] == pixels_CHW[0].size).tolist())
                lost = count_chunks(files.values())
                if batch.work is Work.COUNT:
                    packed.append(PackedSite(images, None, black, lost))
                    continue
                key, digest = ome_zarr.chunk_key(site.well, site.field), hashlib.sha256(chunk).hexdigest()
                record = SiteRecord(site=site.site, key=key, size=len(chunk), sha256=digest)
                packed.append(PackedSite(images, record, black, lost))
                yield f"{batch.prefix}/{key}", chunk

        self._packing.store.put_many(chunks())
        if broken:
            raise joined(broken)
        return PackedBatch(tuple(packed), total_CG, controls_CG)

    def _checksums(self, site: SiteFiles, contents: Contents) -> tuple[str, ...]:
        return file_checksums(self._packing.source, site, contents, self._channels)

    def _decoded(
        self, site: SiteFiles, contents: Contents, ranges: tuple[Range, ...]
    ) -> tuple[tuple[str, ...], Pixels, NDArray[np.int64]]:
        """Checksums of a site's files, its pixels, rescaled to the ranges if there are any, and their counts (C, G)."""
        form = self._packing.form
        images = self._checksums(site, contents)
        pixels_CHW = _array("files", form)
        packed_CHW = _array("rescaled", replace(form, dtype="uint8")) if ranges else pixels_CHW
        counts_CG = np.empty((len(self._channels), GREYS[packed_CHW.dtype.name]), np.int64)
        broken: list[InputError] = []
        for channel in range(len(self._channels)):
            try:
                decode_channel(self._packing.source, site, channel, contents, pixels_CHW[channel], self._channels)
            except InputError as error:
                broken.append(error)
                continue
            if ranges:
                np.take(_rescaling(ranges[channel]), pixels_CHW[channel], out=packed_CHW[channel], mode="clip")
            count_greys(packed_CHW[channel], counts_CG[channel])  # now, while it is in the cache
        if broken:
            raise joined(broken)
        return images, packed_CHW, counts_CG


@lru_cache(64)
def _rescaling(ends: Range) -> NDArray[np.uint8]:
    """For each of 65,536 grey values the one of 256: 0 up to the range's low end, 255 from its high end."""
    low, high = ends
    share = (np.arange(GREYS["uint16"]) - low) / (high - low)
    return np.asarray(np.rint(255 * share.clip(0, 1)), np.uint8)


_scratch = threading.local()


def _array(name: str, form: ImageForm) -> Pixels:
    """This thread's array (C, H, W) of a name, reused: fresh memory costs a page fault every 4 KiB."""
    known: Pixels | None = getattr(_scratch, name, None)
    if known is None or known.shape != form.site_shape or known.dtype != form.dtype:
        known = np.empty(form.site_shape, form.dtype)
        setattr(_scratch, name, known)
    return known
