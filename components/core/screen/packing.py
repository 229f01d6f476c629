"""Packs a plate's PNGs into the object store, once. Writes through ObjectWriter; knows no labels.

A packed plate is immutable. Its key holds a digest of the PNGs' bytes and of how they are packed, its record
`plate.json` is written last, and whatever has no record is not a plate. A fingerprint of the files' names, sizes and
times leads a later run to the record without reading an image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from components.core.config import CHANNELS, Frozen, PackConfig
from components.core.errors import InputError, StepError
from components.core.screen import ome_zarr
from components.core.screen.chunks import encode_chunk
from components.core.screen.histograms import BINS, histogram, percentile
from components.core.screen.images import PlateFiles, SiteFiles, check_image, decode_site, read_image
from components.core.screen.wells import Plate
from components.core.storage.interface import MissingObjectError, ObjectWriter
from components.core.storage.manifest import SiteRecord

PACKING = 1
"""Version of what lies under a plate's prefix; part of every digest, so that a change packs anew."""

_DISPLAY_PERCENTILES = (1.0, 99.9)


class PackedWell(Frozen):
    """The packed sites of a well."""

    well: str
    sites: tuple[SiteRecord, ...]


class PackedPlate(Frozen):
    """The record of a packed plate: all that can be known of it without the tables."""

    packing: int = PACKING
    experiment: str
    plate: int
    image_size: int
    histograms: tuple[tuple[int, ...], ...] = Field(description="(channels, 256) pixel counts over all its sites")
    wells: tuple[PackedWell, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PackResult:
    """Where a plate lies, and whether it lay there before."""

    prefix: str
    packed: PackedPlate
    reused: bool


@dataclass(frozen=True, slots=True)
class _Coded:
    site: SiteFiles
    chunk: bytes
    sha256: str
    histogram_C256: NDArray[np.int64]
    black: tuple[int, ...]


def pack_plate(
    plate: Plate, files: PlateFiles, image_size: int, pack: PackConfig, store: ObjectWriter, pool: Executor
) -> PackResult:
    """Makes sure that a plate is in the store, and says where.

    Holds the plate's PNG bytes (about 230 MB of a full plate) and a few decoded sites in memory.

    Args:
        plate: which plate.
        files: its image files, from `images.list_plate`.
        image_size: expected side, pixels.
        pack: codec settings.
        store: where plates and fingerprints live.
        pool: threads that read, decode and compress.

    Raises:
        InputError: an image is missing, damaged or of another kind or size. Nothing of the plate stays in the store.
    """
    fingerprint = _fingerprint_key(plate, files, image_size, pack)
    prefix = _known_prefix(store, fingerprint)
    if prefix is not None:
        # No record of the run names the plate yet; a young fingerprint keeps `store gc` away from it.
        store.put(fingerprint, json.dumps({"prefix": prefix}).encode())
    packed = None if prefix is None else _find_record(store, prefix)
    if prefix is not None and packed is not None:
        return PackResult(prefix, packed, reused=True)

    data, digest = _read(plate, files, image_size, pack, pool)
    prefix = f"plates/{plate.experiment}_Plate{plate.plate}-{digest[:32]}"
    packed = _find_record(store, prefix)
    reused = packed is not None
    if packed is None:
        try:
            packed = _write(plate, files, data, prefix, image_size, pack, store, pool)
        except InputError:
            store.delete_prefix(f"{prefix}/")
            raise
    store.put(fingerprint, json.dumps({"prefix": prefix}).encode())
    return PackResult(prefix, packed, reused)


def _settings(image_size: int, pack: PackConfig) -> dict[str, object]:
    return {"packing": PACKING, "image_size": image_size, "codec": pack.model_dump()}


def _fingerprint_key(plate: Plate, files: PlateFiles, image_size: int, pack: PackConfig) -> str:
    """Key of the object that leads from the files' names, sizes and modification times to the packed plate."""
    names = {name for site in files.sites for name in site.names}
    with os.scandir(files.folder) as entries:
        facts = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries if e.name in names)
    content = {**_settings(image_size, pack), "plate": [plate.experiment, plate.plate], "files": facts}
    return f"fingerprints/{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.json"


def _known_prefix(store: ObjectWriter, fingerprint: str) -> str | None:
    try:
        return str(json.loads(store.get(fingerprint))["prefix"])
    except MissingObjectError:
        return None


def _find_record(store: ObjectWriter, prefix: str) -> PackedPlate | None:
    """The plate's record; without one, what lies there was never finished."""
    key = f"{prefix}/plate.json"
    try:
        return PackedPlate.model_validate_json(store.get(key))
    except MissingObjectError:
        return None
    except ValidationError:
        raise StepError(f"{store.uri(key)}: not the record of a packed plate; delete the plate and run again") from None


def _read(
    plate: Plate, files: PlateFiles, image_size: int, pack: PackConfig, pool: Executor
) -> tuple[dict[SiteFiles, list[bytes]], str]:
    """The plate's PNG bytes by site, checked, and the digest that names the packed plate."""

    def one(site: SiteFiles) -> tuple[list[bytes], list[tuple[str, str]]]:
        contents, digests = [], []
        for channel, name in enumerate(site.names):
            content = read_image(files.folder, site, channel)
            check_image(files.folder, site, channel, content, image_size)
            contents.append(content)
            digests.append((name, hashlib.sha256(content).hexdigest()))
        return contents, digests

    data: dict[SiteFiles, list[bytes]] = {}
    named: list[tuple[str, str]] = []
    for site, (contents, digests) in zip(files.sites, pool.map(one, files.sites), strict=True):
        data[site] = contents
        named += digests
    content = {**_settings(image_size, pack), "files": sorted(named)}
    return data, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(
    plate: Plate,
    files: PlateFiles,
    data: dict[SiteFiles, list[bytes]],
    prefix: str,
    image_size: int,
    pack: PackConfig,
    store: ObjectWriter,
    pool: Executor,
) -> PackedPlate:
    """Writes chunks, then metadata, then the record."""
    total_C256 = np.zeros((len(CHANNELS), BINS), np.int64)
    sites_by_well: dict[str, list[SiteRecord]] = {}
    black: list[str] = []
    refused: list[InputError] = []

    def chunks() -> Iterator[tuple[str, bytes]]:
        nonlocal total_C256
        try:
            for coded in _coded(files, data, image_size, pack, pool):
                sites = sites_by_well.setdefault(coded.site.well, [])
                key = ome_zarr.chunk_key(coded.site.well, len(sites))
                sites.append(SiteRecord(site=coded.site.site, key=key, size=len(coded.chunk), sha256=coded.sha256))
                total_C256 += coded.histogram_C256
                black.extend(f"{coded.site.names[channel]} ({CHANNELS[channel]})" for channel in coded.black)
                yield f"{prefix}/{key}", coded.chunk
        except InputError as error:
            # Raised only after the writes in flight have landed: one that landed later would outlive the clean-up.
            refused.append(error)

    store.put_many(chunks())
    if refused:
        raise refused[0]
    low, high = (percentile(total_C256, percent) for percent in _DISPLAY_PERCENTILES)
    windows = [(int(start), max(int(end), int(start) + 1)) for start, end in zip(low, high, strict=True)]
    fields = [(well, [record.site for record in records]) for well, records in sites_by_well.items()]
    documents = ome_zarr.plate_documents(plate.name, fields, image_size, pack, windows)
    store.put_many((f"{prefix}/{key}", document) for key, document in documents)
    packed = PackedPlate(
        experiment=plate.experiment,
        plate=plate.plate,
        image_size=image_size,
        histograms=tuple(tuple(counts) for counts in total_C256.tolist()),
        wells=tuple(PackedWell(well=well, sites=tuple(records)) for well, records in sites_by_well.items()),
        warnings=tuple(f"{plate.name}: {name} is all black" for name in black),
    )
    store.put(f"{prefix}/plate.json", packed.model_dump_json().encode())
    return packed


def _coded(
    files: PlateFiles, data: dict[SiteFiles, list[bytes]], image_size: int, pack: PackConfig, pool: Executor
) -> Iterator[_Coded]:
    """Decodes and compresses the sites, in order, a few ahead of the consumer; lets go of each site's PNGs."""

    def code(site: SiteFiles, contents: list[bytes]) -> _Coded:
        pixels_CSS = decode_site(files.folder, site, contents, image_size)
        counts_C256 = histogram(pixels_CSS)
        chunk = encode_chunk(pixels_CSS, pack)
        black = tuple(np.flatnonzero(counts_C256[:, 0] == image_size * image_size).tolist())
        return _Coded(site, chunk, hashlib.sha256(chunk).hexdigest(), counts_C256, black)

    ahead = 4 * (os.cpu_count() or 1)
    window: deque[Future[_Coded]] = deque()
    try:
        for site in files.sites:
            window.append(pool.submit(code, site, data.pop(site)))
            if len(window) > ahead:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        for future in window:
            future.cancel()
