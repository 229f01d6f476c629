"""Packs plates' images into an object store, each once. Reads through ScreenSource, writes through ObjectStore; knows no labels.

A plate is packed in batches of a few sites (batches.py), many at a time, and no more images than theirs are in memory,
however large plate and screen are. Large screens are packed by worker processes, small ones by threads. The batches of the
next plates are queued before a plate is finished, so that the workers never wait for its metadata.

A packed plate is immutable. The run after a killed one writes the same chunks to the same keys:

    plates/EXPERIMENT_PlateP-DIGEST/plate.json  the record, written last: a prefix without it holds no plate
    plates/EXPERIMENT_PlateP-DIGEST/labels.json, controls-DIGEST.json   what depends on the tables (plate_labels.py)
    fingerprints/DIGEST.json                    the plate last used for files of this listing
    copies/DIGEST.json                          the plate last packed from files of these names and sizes

DIGEST is computed from a listing: names, sizes and versions of the plate's files, and the packing settings. Unlike a digest
of the pixels it is known before the first image is read, so that chunks can be written as they are made.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import InputError, MissingObjectError, StepError, StoreAccessError, joined
from components.core.processes import cores, worker_processes
from components.core.screen import ome_zarr
from components.core.screen.batches import Batch, BatchPacker, PackedBatch, PackedSite, Packing, Range, Work, batches
from components.core.screen.histograms import percentile
from components.core.screen.images import PlateFiles, SiteFiles, plate_files
from components.core.screen.plate_labels import controls_of, find_controls, write_controls, write_labels
from components.core.screen.wells import Plate
from components.core.screen.zarr_images import ABSENT_CHUNKS
from components.core.storage.counts import NO_COUNTS, Counts
from components.core.storage.manifest import SiteRecord

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

PACKING_VERSION = 3
"""Version of what is written under a plate's prefix; part of every digest, so that a change packs all plates again."""

PLATES = 2
"""Plates whose batches are queued: one that is being finished, and the next."""
LOOKUPS = 6
"""Plates that are looked for in the store ahead of those."""
TASKS = 2
"""Batches under way for every core: while one is computed, the files of another are read or written."""
PROCESSES_FROM = 2e8
"""Pixels of a screen from which on worker processes pay for their start, if there are two cores or more."""

_DISPLAY_PERCENTILES = (1.0, 99.9)
_RANGE_PERCENTILES = (0.1, 99.9)
"""Percentiles of a channel's pixels on a plate that are 0 and 255 if 16-bit pixels are rescaled."""


class PackedWell(FrozenModel):
    """The packed sites of a well."""

    well: str
    sites: tuple[SiteRecord, ...]


class PackedPlate(FrozenModel):
    """The record of a packed plate: everything about it that does not depend on the tables."""

    packing: int = PACKING_VERSION
    experiment: str
    plate: str
    images: str = Field(description="images_digest of its image files")
    histograms: Counts = Field(description="(channels, grey values) pixel counts over all its sites")
    rescaled: tuple[Range, ...] = Field((), description="as in the manifest's PlateRecord")
    wells: tuple[PackedWell, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlateKeys:
    """The keys of a plate whose files are listed."""

    prefix: str  # of the plate, if it is packed from these very files
    fingerprint: str  # of the pointer from these files; each use of the plate renews it
    copies: str  # of the pointer from files of the same names and sizes

    @classmethod
    def of(cls, plate: Plate, files: PlateFiles, packing: Packing) -> PlateKeys:
        """The keys that follow from a listing and the settings."""
        places = [
            (
                site.well,
                site.site,
                [[(files.name(plane.path), plane.index) for plane in each] for each in site.channels],
            )
            for site in files.sites
        ]
        settings = [
            PACKING_VERSION,
            asdict(packing.form),
            packing.pack.model_dump(),
            plate.experiment,
            plate.plate,
            places,
        ]
        exact = _digest([settings, files.facts])
        similar = _digest([settings, [(file.name, file.size) for file in files.facts]])
        prefix = f"plates/{_key(plate.experiment)}_Plate{_key(plate.plate)}-{exact[:32]}"
        return cls(prefix, f"fingerprints/{exact}.json", f"copies/{similar}.json")


@dataclass(frozen=True, slots=True)
class PackResult:
    """A plate in the store."""

    prefix: str
    packed: PackedPlate
    reused: bool  # whether it was in the store before
    control_histograms: Counts = NO_COUNTS
    warnings: tuple[str, ...] = ()  # about its files and their pixels
    written: int = field(default=0, compare=False)  # objects written for it


class _Submitted:
    """A plate's batches under way. Their counts are added up as they end: those of 16-bit pixels take megabytes each."""

    def __init__(
        self, some: Iterable[Batch] = (), submit: Callable[[Batch], Future[PackedBatch]] | None = None
    ) -> None:
        self.total_CG: NDArray[np.int64] | None = None  # of all pixels, once all sites are known
        self.controls_CG: NDArray[np.int64] | None = None
        self._lock = threading.Lock()
        self._waiting: list[tuple[Batch, Future[tuple[PackedSite, ...]]]] = []
        for batch in some:
            assert submit is not None
            sites: Future[tuple[PackedSite, ...]] = Future()
            self._waiting.append((batch, sites))
            submit(batch).add_done_callback(partial(self._ended, sites))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def sites(self) -> Iterator[tuple[SiteFiles, PackedSite]]:
        """The sites in order, each when its batch has ended; raises what a batch raised, of bad images those of all batches."""
        broken: list[InputError] = []
        for batch, future in self._waiting:
            try:
                sites = future.result()
            except StoreAccessError:
                raise
            except InputError as error:
                broken.append(error)
                continue
            if not broken:
                yield from zip(batch.sites, sites, strict=True)
        if broken:
            raise joined(broken)

    def _ended(self, sites: Future[tuple[PackedSite, ...]], done: Future[PackedBatch]) -> None:
        try:
            batch = done.result()
            with self._lock:
                self.total_CG = _added(self.total_CG, batch.histogram_CG)
                self.controls_CG = _added(self.controls_CG, batch.controls_CG)
        except BaseException as error:  # CancelledError is none of Exception's
            sites.set_exception(error)
        else:
            sites.set_result(batch.sites)


@dataclass(frozen=True, slots=True)
class _PlateTask:
    """A plate whose files are listed."""

    plate: Plate
    files: PlateFiles
    keys: PlateKeys
    found: tuple[str, PackedPlate] | None  # prefix and record in the store; None if the plate is to be packed
    batches: _Submitted = field(default_factory=_Submitted)  # to pack or only to count; none if it was found


def pack_plates(packing: Packing, plates: Sequence[Plate]) -> Iterator[PackResult]:
    """Packs the plates that are not in the store yet.

    Yields:
        The plates in their order, each when it is in the store.

    Raises:
        InputError: images are missing, damaged or of another kind or size; names those of a plate together. The plates before
            it are complete, nothing is left of the others.
        StepError: a worker process was killed.
    """
    queued: deque[_PlateTask] = deque()
    pool, pack_batch = _batch_pool(packing, plates)
    lookups = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="look-up")
    packer = _PlatePacker(packing, lambda batch: pool.submit(pack_batch, batch))
    try:
        try:
            rest = iter(plates)
            listed = deque(lookups.submit(packer.look_up, plate) for plate in islice(rest, LOOKUPS))
            while listed or queued:
                while listed and len(queued) < PLATES:
                    try:
                        queued.append(packer.queue(listed[0].result()))
                    except InputError:
                        if not queued:
                            raise
                        break  # the plates before it are finished first
                    listed.popleft()
                    listed.extend(lookups.submit(packer.look_up, plate) for plate in islice(rest, 1))
                result = packer.finish(queued[0])
                queued.popleft()
                yield result
        finally:  # nothing may be under way any more: what is written later would outlive the clean-up
            lookups.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(cancel_futures=True)
            lookups.shutdown()
    except InputError:
        for task in queued:
            packer.delete(task)
        raise
    except BrokenProcessPool:
        raise StepError(
            "a worker process was killed, most often because memory ran out; raise cluster.steps.normalize.memory_gib or "
            "lower its cpu and run again: finished plates are reused"
        ) from None


def _batch_pool(packing: Packing, plates: Sequence[Plate]) -> tuple[Executor, Callable[[Batch], PackedBatch]]:
    """The pool that packs batches, and the function that packs one in it."""
    sites = sum(len(well.sites) for plate in plates for well in plate.wells)
    pixels = sites * math.prod(packing.form.site_shape)
    if cores() > 1 and pixels >= PROCESSES_FROM:
        with suppress(TypeError):  # source or store exist in this process alone
            pickled = pickle.dumps(BatchPacker(packing))
            modules = {BatchPacker.__module__, type(packing.source).__module__, type(packing.store).__module__}
            if packing.store.root is None:
                modules.add("components.core.storage.s3")  # which a store imports only for a bucket
            return worker_processes(TASKS * cores(), sorted(modules)), partial(_pack_in_worker, pickled)
    pool = ThreadPoolExecutor(TASKS * cores(), thread_name_prefix="pack")
    return pool, BatchPacker(packing, threading.Semaphore(cores()))


def _pack_in_worker(pickled: bytes, batch: Batch) -> PackedBatch:
    return _unpickled(pickled)(batch)


@lru_cache(1)
def _unpickled(pickled: bytes) -> BatchPacker:
    """This process's packer, which may open a client of the store; raises for the batch if that fails."""
    packer = pickle.loads(pickled)
    assert isinstance(packer, BatchPacker)
    return packer


class _PlatePacker:
    """The life of a plate: look_up, queue, finish; or delete, if an error comes between."""

    def __init__(self, packing: Packing, submit: Callable[[Batch], Future[PackedBatch]]) -> None:
        self._packing, self._store, self._submit = packing, packing.store, submit

    def _submitted(self, files: PlateFiles, like: Batch) -> _Submitted:
        return _Submitted(batches(files, like), self._submit)

    def look_up(self, plate: Plate) -> _PlateTask:
        """Lists a plate's files and looks for it in the store, which may hold the plate of copies of them."""
        files = plate_files(self._packing.source, plate)
        keys = PlateKeys.of(plate, files, self._packing)
        record = find_record(self._store, keys.prefix)
        found = (keys.prefix, record) if record else follow_pointer(self._store, keys.fingerprint)
        found = found or self._find_copy(keys, files)
        if found:
            # No run's record names the plate yet; a young pointer to it keeps `store gc` from deleting it.
            write_pointer(self._store, keys.fingerprint, found[0])
        return _PlateTask(plate, files, keys, found)

    def _find_copy(self, keys: PlateKeys, files: PlateFiles) -> tuple[str, PackedPlate] | None:
        """The plate of files of the same names and sizes, if the files' checksums, for which they are read, are the same."""
        found = follow_pointer(self._store, keys.copies)
        if found is None:
            return None
        checksums: list[tuple[str, str]] = []
        for site, packed in self._submitted(files, Batch((), Work.CHECK)).sites():
            checksums.extend(zip(map(files.name, site.paths), packed.images, strict=True))
        return found if images_digest(checksums) == found[1].images else None

    def queue(self, task: _PlateTask) -> _PlateTask:
        """Queues the batches of a plate that is not in the store."""
        if task.found:
            return task
        # The ranges of a rescaled plate are known only when all its pixels are counted.
        like = Batch((), Work.COUNT) if self._packing.rescales else self._to_pack(task)
        return replace(task, batches=self._submitted(task.files, like))

    def _to_pack(self, task: _PlateTask, ranges: tuple[Range, ...] = ()) -> Batch:
        return Batch((), Work.PACK, task.keys.prefix, controls_of(task.plate), ranges)

    def finish(self, task: _PlateTask) -> PackResult:
        """Waits for a plate's batches, then writes its metadata and, last, its record."""
        if task.found:
            return self._found(task, *task.found)
        plate, files, keys = task.plate, task.files, task.keys
        ranges: tuple[Range, ...] = ()
        if self._packing.rescales:
            deque(task.batches.sites(), 0)
            ranges = _percentiles(_known(task.batches.total_CG), _RANGE_PERCENTILES)
            task = replace(task, batches=self._submitted(files, self._to_pack(task, ranges)))
        sites_by_well: dict[str, list[SiteRecord]] = {}
        images: list[tuple[str, str]] = []
        black: list[str] = []
        absent = chunks = 0
        for site, packed_site in task.batches.sites():
            assert packed_site.record is not None
            sites_by_well.setdefault(site.well, []).append(packed_site.record)
            images.extend(zip(map(files.name, site.paths), packed_site.images, strict=True))
            absent, chunks = absent + packed_site.chunks[0], chunks + packed_site.chunks[1]
            black.extend(
                f"{site.channels[channel][0].path.rpartition('/')[2]} ({self._packing.form.channels[channel]})"
                for channel in packed_site.black
            )
        total_CG, controls_CG = _known(task.batches.total_CG), task.batches.controls_CG
        controls = NO_COUNTS if controls_CG is None else Counts(controls_CG)
        documents = list(self._documents(plate, keys.prefix, sites_by_well, total_CG))
        self._store.put_many(documents)
        labels = write_labels(self._store, keys.prefix, plate)
        if len(controls):
            write_controls(self._store, keys.prefix, controls_of(plate), controls)
        packed = PackedPlate(
            experiment=plate.experiment,
            plate=plate.plate,
            images=images_digest(images),
            histograms=Counts(total_CG),
            rescaled=ranges,
            wells=tuple(PackedWell(well=well, sites=tuple(records)) for well, records in sites_by_well.items()),
            warnings=(
                *([f"{plate.name}: {ABSENT_CHUNKS.format(absent, chunks)}"] if absent else []),
                *(f"{plate.name}: {name} is all black" for name in black),
            ),
        )
        self._store.put(f"{keys.prefix}/plate.json", packed.model_dump_json().encode())
        write_pointer(self._store, keys.copies, keys.prefix)
        written = len(files.sites) + len(documents) + labels + bool(len(controls)) + 2
        return PackResult(keys.prefix, packed, False, controls, packed.warnings, written)

    def _found(self, task: _PlateTask, prefix: str, packed: PackedPlate) -> PackResult:
        """A plate that was in the store, with the labels and controls of the tables as they are now."""
        sites = [(well.well, record) for well in packed.wells for record in well.sites]
        wells = controls_of(task.plate)
        controls = find_controls(self._store, prefix, wells, sites, self._packing.packed_form)
        written = 1 + write_labels(self._store, prefix, task.plate)
        return PackResult(prefix, packed, True, controls, packed.warnings, written)

    def _documents(
        self,
        plate: Plate,
        prefix: str,
        sites_by_well: Mapping[str, Sequence[SiteRecord]],
        total_CG: NDArray[np.int64],
    ) -> Iterator[tuple[str, bytes]]:
        """The plate's metadata; its display ranges are known once all pixels are counted."""
        windows = _percentiles(total_CG, _DISPLAY_PERCENTILES)
        fields = [(well, [record.site for record in records]) for well, records in sites_by_well.items()]
        form, pack = self._packing.packed_form, self._packing.pack
        for key, document in ome_zarr.plate_documents(plate.name, fields, form, pack, windows):
            yield f"{prefix}/{key}", document

    def delete(self, task: _PlateTask) -> None:
        """Deletes what was written of an unfinished plate: files that were bad may never come back under these keys."""
        if task.batches:
            # An error of the store here would hide the first one; without a record there is no plate anyway.
            with suppress(InputError, StepError):
                self._store.delete_prefix(f"{task.keys.prefix}/")


def _added(total_CG: NDArray[np.int64] | None, more_CG: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """A sum of counts and more of them, in place; None is that of none."""
    if total_CG is None or more_CG is None:
        return more_CG if total_CG is None else total_CG
    return np.add(total_CG, more_CG, out=total_CG)


def _known(total_CG: NDArray[np.int64] | None) -> NDArray[np.int64]:
    assert total_CG is not None, "a plate has sites"
    return total_CG


def _percentiles(total_CG: NDArray[np.int64], percents: tuple[float, float]) -> tuple[Range, ...]:
    """Two percentiles of each channel, at least one grey value apart."""
    low, high = (percentile(total_CG, percent) for percent in percents)
    return tuple((int(start), max(int(end), int(start) + 1)) for start, end in zip(low, high, strict=True))


def images_digest(checksums: Iterable[tuple[str, str]]) -> str:
    """The digest that two plates share if their images are the same, given equal names and sizes.

    Args:
        checksums: name and `read_image` result of each file, in any order.
    """
    return _digest(sorted(checksums))


def find_record(store: ObjectStore, prefix: str) -> PackedPlate | None:
    """The record of the plate under a prefix; None if there is none.

    Raises:
        StepError: the object is not a record.
    """
    key = f"{prefix}/plate.json"
    try:
        return PackedPlate.model_validate_json(store.get(key))
    except MissingObjectError:
        return None
    except ValidationError:
        raise StepError(f"{store.uri(key)}: not the record of a packed plate; delete the plate and run again") from None


def follow_pointer(store: ObjectStore, key: str) -> tuple[str, PackedPlate] | None:
    """Prefix and record of the plate that the pointer at a key leads to; None without pointer or plate."""
    try:
        prefix = json.loads(store.get(key))["prefix"]
    except (MissingObjectError, ValueError, TypeError, KeyError):  # a power cut may leave half a file in a folder
        return None
    found = find_record(store, prefix)
    return None if found is None else (prefix, found)


def write_pointer(store: ObjectStore, key: str, prefix: str) -> None:
    """Makes a key point to a plate."""
    store.put(key, json.dumps({"prefix": prefix}).encode())


def _key(name: str) -> str:
    """A name as a part of a key; the digest keeps names apart that become alike."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
