"""Packs plates' PNGs into an object store, each once. Reads through ScreenSource, writes through ObjectWriter; knows no labels.

A plate is packed in batches of a few sites (batches.py), many side by side, and no more images than theirs are in memory,
however large plate and screen are. Where there are several cores and enough to do, batches are packed by processes, which
give back no more than sizes, digests and counts; else by threads of this one. Plates follow each other without a gap: when
the last batches of one are waiting, those of the next queue behind them, while the one is still packed and described.

A packed plate is immutable, and its record is written last (plate_record.py). A run that was killed wrote what the next one
writes again, at the same keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from threading import Event

import numpy as np
from numpy.typing import NDArray

from components.core.config import CHANNELS, PackConfig
from components.core.errors import InputError, StepError
from components.core.processes import cores
from components.core.screen import ome_zarr
from components.core.screen.batches import Batch, BatchPacker, PackedBatch, batches, chunk_keys
from components.core.screen.histograms import BINS, percentile
from components.core.screen.images import PlateFiles, list_plate
from components.core.screen.plate_record import (
    PackedPlate,
    PackedWell,
    PlateKeys,
    find_plate,
    follow_leads,
    images_digest,
    write_lead,
)
from components.core.screen.screen_source import ScreenSource
from components.core.screen.wells import Plate
from components.core.storage.interface import ObjectWriter
from components.core.storage.manifest import SiteRecord
from components.core.workers import WorkerProcesses

PLATES = 3
"""Plates under way: one whose batches are packed, one whose batches wait, and one that is being described."""
THREADS = 2
"""Batches under way for every core: while one is computed, the files of another are read; writes are in flight besides."""
PROCESSES_FROM = 2e8
"""Pixels of a screen from which on processes pack it, where there are two cores or more.

Their start takes 0.35 CPU-seconds, however many they are. On two cores they then save 3 ms a site of six 512-pixel images, which
pays for it after 120 sites, 1.9e8 pixels; on 16, where threads would wait for Python's lock, sooner.
"""

_DISPLAY_PERCENTILES = (1.0, 99.9)
_Submit = Callable[[Batch], Future[PackedBatch]]


@dataclass(frozen=True, slots=True)
class PackResult:
    """Where a plate lies, and whether it lay there before.

    Attributes:
        warnings: of its files and of what is in them.
    """

    prefix: str
    packed: PackedPlate
    reused: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Packing:
    """How a screen is packed, and where to.

    Attributes:
        sites: largest number of sites a well has.
        image_size: side of the images, pixels.
        pack: codec settings.
        written_elsewhere: hears how many objects another process wrote to the store.
    """

    place: ScreenSource
    sites: int
    image_size: int
    pack: PackConfig
    store: ObjectWriter
    written_elsewhere: Callable[[int], None] = lambda _: None


class _AbandonedError(Exception):
    """A plate is not finished because an earlier one failed, or the run ends."""


@dataclass(slots=True)
class _Turn:
    """A plate's place in the order.

    Attributes:
        asked: all of its batches are waiting or further, so that the next plate's may follow.
        done: it is finished, or will not be; the next one's record may be written. So plates are finished in order, and
            of those after a bad one there is none.
        failure: why neither this plate nor a later one will be finished.
    """

    asked: Event = field(default_factory=Event)
    done: Event = field(default_factory=Event)
    failure: BaseException | None = None


def pack_plates(packing: Packing, plates: Sequence[Plate]) -> Iterator[PackResult]:
    """Makes sure that plates are in the store, and says where, in their order.

    Args:
        packing: from where to where, and how.
        plates: which.

    Raises:
        InputError: an image is missing, damaged or of another kind or size. Plates before it are whole, of the others
            nothing stays in the store.
    """
    with ExitStack() as pools:
        packer = _Packer(packing, *_pool(packing, plates, pools))
        writers = pools.enter_context(ThreadPoolExecutor(PLATES, thread_name_prefix="plate"))
        under_way: deque[Future[PackResult]] = deque()
        before = _Turn()
        before.asked.set()
        before.done.set()
        try:
            for plate in plates:
                if len(under_way) == PLATES:
                    yield under_way.popleft().result()
                turn = _Turn()
                under_way.append(writers.submit(packer.pack, plate, before, turn))
                before = turn
            while under_way:
                yield under_way.popleft().result()
        finally:
            packer.ended.set()


def _pool(packing: Packing, plates: Sequence[Plate], pools: ExitStack) -> tuple[_Submit, Callable[[int], None]]:
    """What packs a batch somewhere, and what is to hear how many objects were written there."""
    shared = packing.place, packing.store, packing.image_size, packing.pack
    if cores() > 1 and _pixels(packing, plates) >= PROCESSES_FROM:
        modules = [BatchPacker.__module__, *{type(each).__module__ for each in (packing.place, packing.store)}]
        advice = "raise cluster.steps.normalize.memory_gib or lower its cpu"
        try:
            workers: WorkerProcesses[Batch, PackedBatch] = WorkerProcesses(
                BatchPacker(*shared, 1), cores(), THREADS, modules, advice
            )
        except TypeError:
            pass  # place or store are of this process alone
        else:
            return pools.enter_context(workers).submit, packing.written_elsewhere
    threads = pools.enter_context(ThreadPoolExecutor(THREADS * cores(), thread_name_prefix="pack"))
    work = BatchPacker(*shared, cores())
    return lambda batch: threads.submit(work, batch), lambda _: None


def _pixels(packing: Packing, plates: Sequence[Plate]) -> int:
    return sum(len(plate.wells) for plate in plates) * packing.sites * len(CHANNELS) * packing.image_size**2


class _Packer:
    """Packs one plate a thread; batches are packed by threads or processes that all plates share."""

    def __init__(self, packing: Packing, submit: _Submit, written_elsewhere: Callable[[int], None]) -> None:
        self._packing = packing
        self._store = packing.store
        self._submit = submit
        self._written_elsewhere = written_elsewhere
        self.ended = Event()

    def pack(self, plate: Plate, before: _Turn, turn: _Turn) -> PackResult:
        """Packs a plate, or finds it, after its predecessor's turn."""
        try:
            files = list_plate(self._packing.place, plate, self._packing.sites)
            keys = PlateKeys.of(plate, files, self._packing.image_size, self._packing.pack)
            found = find_plate(self._store, keys.prefix, [keys.fingerprint]) or self._find_copy(keys, files)
            if found is None:
                before.asked.wait()
                self._check(before)
                prefix, packed = keys.prefix, self._write(plate, files, keys, before, turn)
            else:
                prefix, packed = found
                # No record of the run names the plate yet; a young lead to it keeps `store gc` away.
                write_lead(self._store, keys.fingerprint, prefix)
            return PackResult(prefix, packed, found is not None, (*files.warnings, *packed.warnings))
        except _AbandonedError:
            raise
        except BaseException as error:
            turn.failure = error
            raise
        finally:
            # Whatever became of this plate, its successor must not overtake its predecessor.
            for mine, earlier in ((turn.asked, before.asked), (turn.done, before.done)):
                earlier.wait()
                turn.failure = turn.failure or before.failure
                mine.set()

    def _check(self, before: _Turn) -> None:
        if before.failure is not None or self.ended.is_set():
            raise _AbandonedError

    def _find_copy(self, keys: PlateKeys, files: PlateFiles) -> tuple[str, PackedPlate] | None:
        """The plate of files of the same names and sizes, if their bytes are the same too: then they are read, no more."""
        found = follow_leads(self._store, [keys.copies])
        if found is None:
            return None
        named: list[tuple[str, str]] = []
        with closing(self._results(batches(files), lambda: None)) as results:
            for batch, done in results:
                if self.ended.is_set():
                    raise _AbandonedError
                for site, packed in zip(batch.sites, done.sites, strict=True):
                    named.extend(zip(site.names, packed.images, strict=True))
        if images_digest(named) != found[1].images:
            return None
        return found

    def _write(self, plate: Plate, files: PlateFiles, keys: PlateKeys, before: _Turn, turn: _Turn) -> PackedPlate:
        """Writes chunks and metadata, then the record; takes all of it back where the input is bad."""
        total_C256 = np.zeros((len(CHANNELS), BINS), np.int64)
        sites_by_well: dict[str, list[SiteRecord]] = {}
        images: list[tuple[str, str]] = []
        black: list[str] = []
        names = chunk_keys(files)
        left = iter(names)
        try:
            asked = batches(files, [f"{keys.prefix}/{key}" for key in names])
            with closing(self._results(asked, turn.asked.set)) as results:
                for batch, done in results:
                    self._check(before)
                    self._written_elsewhere(len(batch.sites))
                    total_C256 += done.histogram_C256
                    for site, packed in zip(batch.sites, done.sites, strict=True):
                        record = SiteRecord(site=site.site, key=next(left), size=packed.size, sha256=packed.sha256)
                        sites_by_well.setdefault(site.well, []).append(record)
                        images.extend(zip(site.names, packed.images, strict=True))
                        black.extend(f"{site.names[channel]} ({CHANNELS[channel]})" for channel in packed.black)
            self._store.put_many(self._documents(plate, keys, sites_by_well, total_C256))
            before.done.wait()
            self._check(before)
        except (InputError, _AbandonedError) as error:
            before.done.wait()
            # A run that was cancelled goes on where it stopped; bad input may never come back under these keys.
            if isinstance(error, InputError) or isinstance(before.failure, InputError):
                self._take_back(f"{keys.prefix}/")
            raise
        packed_plate = PackedPlate(
            experiment=plate.experiment,
            plate=plate.plate,
            image_size=self._packing.image_size,
            images=images_digest(images),
            histograms=tuple(tuple(counts) for counts in total_C256.tolist()),
            wells=tuple(PackedWell(well=well, sites=tuple(records)) for well, records in sites_by_well.items()),
            warnings=tuple(f"{plate.name}: {name} is all black" for name in black),
        )
        self._store.put(f"{keys.prefix}/plate.json", packed_plate.model_dump_json().encode())
        write_lead(self._store, keys.copies, keys.prefix)
        return packed_plate

    def _documents(
        self,
        plate: Plate,
        keys: PlateKeys,
        sites_by_well: Mapping[str, Sequence[SiteRecord]],
        total_C256: NDArray[np.int64],
    ) -> Iterator[tuple[str, bytes]]:
        """The plate's metadata, whose display ranges are known when all of its pixels are counted."""
        low, high = (percentile(total_C256, percent) for percent in _DISPLAY_PERCENTILES)
        windows = [(int(start), max(int(end), int(start) + 1)) for start, end in zip(low, high, strict=True)]
        fields = [(well, [record.site for record in records]) for well, records in sites_by_well.items()]
        size, pack = self._packing.image_size, self._packing.pack
        for key, document in ome_zarr.plate_documents(plate.name, fields, size, pack, windows):
            yield f"{keys.prefix}/{key}", document

    def _take_back(self, prefix: str) -> None:
        """Deletes what was written of a plate."""
        # Where the store refuses, its refusal would hide what was wrong first; without a record it is no plate anyway.
        with suppress(InputError, StepError):
            self._store.delete_prefix(prefix)

    def _results(
        self, asked: Iterator[Batch], asked_for_all: Callable[[], object]
    ) -> Generator[tuple[Batch, PackedBatch], None, None]:
        """Each batch with what became of it, in order; tells when all are waiting or further.

        However it is left, nothing is under way any more: what was written later would outlive a clean-up.
        """
        # A waiting batch is names and no more.
        under_way = [(batch, self._submit(batch)) for batch in asked]
        asked_for_all()
        try:
            for batch, future in under_way:
                yield batch, future.result()
        finally:
            for _, future in under_way:
                future.cancel()
            wait([future for _, future in under_way])
