"""Packs plates' PNGs into an object store, each once. Reads through ScreenPlace, writes through ObjectWriter; knows no labels.

Images stream: a few sites of a plate are read ahead, a few coded ones wait to be written, and no more is in memory,
however large plate and screen are. Plates follow each other without a gap: as soon as the last images of one are being
read, those of the next follow, while the one is still coded, written and described.

A packed plate is immutable, and its record is written last (plate_record.py). A run that was killed wrote what the next one
writes again, at the same keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from threading import Event

import numpy as np

from components.core.config import CHANNELS, PackConfig
from components.core.errors import InputError
from components.core.processes import cores
from components.core.screen import ome_zarr
from components.core.screen.coding import CodedSite, code_site
from components.core.screen.histograms import BINS, percentile
from components.core.screen.images import PlateFiles, SiteFiles, check_image, list_plate, read_sites
from components.core.screen.place import ScreenPlace
from components.core.screen.plate_record import (
    PackedPlate,
    PackedWell,
    PlateKeys,
    find_plate,
    follow_leads,
    images_digest,
    write_lead,
)
from components.core.screen.wells import Plate
from components.core.storage.interface import ObjectWriter
from components.core.storage.manifest import SiteRecord

PLATES = 3
"""Plates under way: one whose images are read and coded, and those before it that are being written."""
BATCH = 4
"""Sites that one call reads; with six images each, enough requests to be in flight together."""
READERS = 4
"""Such calls side by side; or one a core, where there are more cores."""
CODED_AHEAD = 3
"""Sites of a plate that are being coded or wait to be written, for every core."""

_DISPLAY_PERCENTILES = (1.0, 99.9)


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
    """

    place: ScreenPlace
    sites: int
    image_size: int
    pack: PackConfig
    store: ObjectWriter


class _AbandonedError(Exception):
    """A plate is not finished because an earlier one failed, or the run ends."""


@dataclass(slots=True)
class _Turn:
    """A plate's place in the order.

    Attributes:
        read: all of its images are being read, so that the next plate's may follow.
        done: it is finished, or will not be; the next one's record may be written. So plates are finished in order, and
            of those after a bad one there is none.
        failure: why neither this plate nor a later one will be finished.
    """

    read: Event = field(default_factory=Event)
    done: Event = field(default_factory=Event)
    failure: BaseException | None = None


def _readers() -> int:
    return max(READERS, cores())


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
        readers = pools.enter_context(ThreadPoolExecutor(_readers(), thread_name_prefix="read"))
        coders = pools.enter_context(ThreadPoolExecutor(cores(), thread_name_prefix="code"))
        writers = pools.enter_context(ThreadPoolExecutor(PLATES, thread_name_prefix="plate"))
        packer = _Packer(packing, readers, coders)
        under_way: deque[Future[PackResult]] = deque()
        before = _Turn()
        before.read.set()
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


class _Packer:
    """Packs one plate a thread; reading and coding are done by threads that all plates share."""

    def __init__(self, packing: Packing, readers: ThreadPoolExecutor, coders: ThreadPoolExecutor) -> None:
        self._packing = packing
        self._store = packing.store
        self._readers = readers
        self._coders = coders
        self.ended = Event()

    def pack(self, plate: Plate, before: _Turn, turn: _Turn) -> PackResult:
        """Packs a plate, or finds it, after its predecessor's turn."""
        try:
            files = list_plate(self._packing.place, plate, self._packing.sites)
            keys = PlateKeys.of(plate, files, self._packing.image_size, self._packing.pack)
            found = find_plate(self._store, keys.prefix, [keys.fingerprint]) or self._find_copy(keys, files)
            if found is None:
                before.read.wait()
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
            for mine, earlier in ((turn.read, before.read), (turn.done, before.done)):
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
        for sites, contents in self._read(files, lambda: None):
            if self.ended.is_set():
                raise _AbandonedError
            for site, of_site in zip(sites, contents, strict=True):
                for channel, content in enumerate(of_site):
                    mark = check_image(files, site, channel, content, self._packing.image_size)
                    named.append((site.names[channel], mark))
        if images_digest(named) != found[1].images:
            return None
        return found

    def _write(self, plate: Plate, files: PlateFiles, keys: PlateKeys, before: _Turn, turn: _Turn) -> PackedPlate:
        """Writes chunks and metadata, then the record; takes all of it back where the input is bad."""
        total_C256 = np.zeros((len(CHANNELS), BINS), np.int64)
        sites_by_well: dict[str, list[SiteRecord]] = {}
        images: list[tuple[str, str]] = []
        black: list[str] = []
        stopped: list[Exception] = []

        def objects() -> Iterator[tuple[str, bytes]]:
            nonlocal total_C256
            try:
                for coded in self._coded(files, turn):
                    self._check(before)
                    sites = sites_by_well.setdefault(coded.site.well, [])
                    key = ome_zarr.chunk_key(coded.site.well, len(sites))
                    sites.append(SiteRecord(site=coded.site.site, key=key, size=len(coded.chunk), sha256=coded.sha256))
                    total_C256 += coded.histogram_C256
                    images.extend(zip(coded.site.names, coded.images, strict=True))
                    black.extend(f"{coded.site.names[channel]} ({CHANNELS[channel]})" for channel in coded.black)
                    yield f"{keys.prefix}/{key}", coded.chunk
            except (InputError, _AbandonedError) as error:
                # Raised only after the writes in flight have landed: one that landed later would outlive the clean-up.
                stopped.append(error)
                return
            low, high = (percentile(total_C256, percent) for percent in _DISPLAY_PERCENTILES)
            windows = [(int(start), max(int(end), int(start) + 1)) for start, end in zip(low, high, strict=True)]
            fields = [(well, [record.site for record in records]) for well, records in sites_by_well.items()]
            size, pack = self._packing.image_size, self._packing.pack
            for key, document in ome_zarr.plate_documents(plate.name, fields, size, pack, windows):
                yield f"{keys.prefix}/{key}", document

        self._store.put_many(objects())
        before.done.wait()
        if not stopped and (before.failure is not None or self.ended.is_set()):
            stopped.append(_AbandonedError())
        for error in stopped:
            # A run that was cancelled goes on where it stopped; bad input may never come back under these keys.
            if isinstance(error, InputError) or isinstance(before.failure, InputError):
                self._store.delete_prefix(f"{keys.prefix}/")
            raise error
        packed = PackedPlate(
            experiment=plate.experiment,
            plate=plate.plate,
            image_size=self._packing.image_size,
            images=images_digest(images),
            histograms=tuple(tuple(counts) for counts in total_C256.tolist()),
            wells=tuple(PackedWell(well=well, sites=tuple(records)) for well, records in sites_by_well.items()),
            warnings=tuple(f"{plate.name}: {name} is all black" for name in black),
        )
        self._store.put(f"{keys.prefix}/plate.json", packed.model_dump_json().encode())
        write_lead(self._store, keys.copies, keys.prefix)
        return packed

    def _coded(self, files: PlateFiles, turn: _Turn) -> Iterator[CodedSite]:
        """The plate's sites as they are written, in order, coded a few ahead of the consumer."""
        size, pack = self._packing.image_size, self._packing.pack
        window: deque[Future[CodedSite]] = deque()
        try:
            for sites, contents in self._read(files, turn.read.set):
                for site, of_site in zip(sites, contents, strict=True):
                    window.append(self._coders.submit(code_site, files, site, of_site, size, pack))
                del contents, of_site  # the coder's now, which lets go of them as it goes
                while len(window) > CODED_AHEAD * cores():
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()

    def _read(
        self, files: PlateFiles, asked_for_all: Callable[[], object]
    ) -> Iterator[tuple[Sequence[SiteFiles], list[list[bytes]]]]:
        """Batches of sites with their images' bytes, in order, some read ahead; tells when all have been asked for."""
        left, ahead = iter(files.sites), _readers()
        window: deque[tuple[Sequence[SiteFiles], Future[list[list[bytes]]]]] = deque()
        try:
            while True:
                while len(window) < ahead and (batch := tuple(islice(left, BATCH))):
                    window.append((batch, self._readers.submit(read_sites, files, batch)))
                if len(window) < ahead:
                    asked_for_all()
                if not window:
                    return
                sites, future = window.popleft()
                yield sites, future.result()
        finally:
            for _, future in window:
                future.cancel()
