"""The packed sites of a manifest: a table of them for sampling and batching, and a reader of their pixels.

P plates, W wells, S sites, all in the manifest's order; a well's sites are neighbours: from first_site_W[w] up to
first_site_W[w + 1]. B sites of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError, MissingObjectError
from components.core.processes import cores
from components.core.screen.ome_zarr import BadChunkError, decode_chunk
from components.core.screen.plane_header import Pixels
from components.core.storage.manifest import Manifest, Role
from components.core.storage.node_cache import NodeCache

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

ROLES: tuple[Role, ...] = get_args(Role)
TREATMENT, POSITIVE_CONTROL, NEGATIVE_CONTROL = range(len(ROLES))
"""Codes in SiteTable.role_W."""

CORES = cores()
_slots: SimpleQueue[None] = SimpleQueue()
"""A semaphore around decoding, so that loader threads never outnumber the cores and starve the training thread. A SimpleQueue
because threading.Semaphore is slower: it is written in Python."""
for _ in range(CORES):
    _slots.put(None)


@dataclass(frozen=True, slots=True, eq=False)
class SiteTable:
    """Plates, wells and sites of a manifest."""

    experiments: tuple[str, ...]  # in the manifest's order; experiment_P and experiment_W index it
    cell_types: tuple[str, ...]  # sorted; cell_type_W indexes it
    plate_name_P: NDArray[np.str_]
    experiment_P: NDArray[np.int32]
    id_code_W: NDArray[np.str_]
    well_W: NDArray[np.str_]
    class_W: NDArray[np.int32]  # index into Vocabulary.classes, -1 if the label is hidden
    own_columns: tuple[str, ...]  # names of the screen's own columns
    extra_W: tuple[tuple[str, ...], ...]  # their values
    role_W: NDArray[np.int8]  # TREATMENT, POSITIVE_CONTROL or NEGATIVE_CONTROL
    plate_W: NDArray[np.int32]
    experiment_W: NDArray[np.int32]
    cell_type_W: NDArray[np.int32]
    fold_W: NDArray[np.int32]  # the first that validates on the well's experiment, or on the well; -1 for none
    more_folds: Mapping[str, tuple[int, ...]]  # further ones by experiment, see Manifest
    labelled_W: NDArray[np.bool_]  # whether its experiment is labelled and, of a treatment, the well itself
    first_site_W: NDArray[np.int64]  # shape (W + 1,)
    well_S: NDArray[np.int32]
    site_S: NDArray[np.int16]  # site number, from 1
    size_S: NDArray[np.int64]  # bytes of the chunk
    key_S: tuple[str, ...]  # of the chunk, relative to the store
    sha256_S: tuple[str, ...]  # of the chunk

    @classmethod
    def of(cls, manifest: Manifest) -> SiteTable:
        """Flattens a manifest.

        Raises:
            ValueError: a well's label is not in the vocabulary, as in a manifest edited by hand.
        """
        plates = manifest.plates
        wells = [(p, well) for p, plate in enumerate(plates) for well in plate.wells]
        sites = [(w, plates[p].prefix, site) for w, (p, well) in enumerate(wells) for site in well.sites]
        experiments = tuple(dict.fromkeys(plate.experiment for plate in plates))
        cell_types = manifest.cell_types
        experiment_P = np.array([experiments.index(plate.experiment) for plate in plates], np.int32)
        cell_type_P = np.array([cell_types.index(plate.cell_type) for plate in plates], np.int32)
        folds = [plate.well_folds or [manifest.folds.get(plate.experiment, -1)] * len(plate.wells) for plate in plates]
        plate_W = np.array([p for p, _ in wells], np.int32)
        classes = manifest.vocabulary.index()
        unknown = next(
            (well for _, well in wells if well.perturbation is not None and well.perturbation not in classes), None
        )
        if unknown is not None:
            raise ValueError(
                f"well {unknown.id_code}: label {unknown.perturbation!r} is not in the manifest's vocabulary"
            )
        labelled_W = np.array(
            [plates[p].labelled and (well.role != "treatment" or well.perturbation is not None) for p, well in wells],
            np.bool_,
        )
        sites_W = np.array([len(well.sites) for _, well in wells], np.int64)
        return cls(
            experiments=experiments,
            cell_types=cell_types,
            plate_name_P=np.array([plate.plate for plate in plates], np.str_),
            experiment_P=experiment_P,
            id_code_W=np.array([well.id_code for _, well in wells], np.str_),
            well_W=np.array([well.well for _, well in wells], np.str_),
            class_W=np.array(
                [-1 if well.perturbation is None else classes[well.perturbation] for _, well in wells], np.int32
            ),
            own_columns=manifest.columns,
            extra_W=tuple(well.extra for _, well in wells),
            role_W=np.array([ROLES.index(well.role) for _, well in wells], np.int8),
            plate_W=plate_W,
            experiment_W=experiment_P[plate_W],
            cell_type_W=cell_type_P[plate_W],
            fold_W=np.where(
                labelled_W, np.array([fold for of_plate in folds for fold in of_plate], np.int32), np.int32(-1)
            ),
            more_folds=manifest.more_folds,
            labelled_W=labelled_W,
            first_site_W=np.concatenate([[0], np.cumsum(sites_W)]).astype(np.int64),
            well_S=np.array([w for w, _, _ in sites], np.int32),
            site_S=np.array([site.site for _, _, site in sites], np.int16),
            size_S=np.array([site.size for _, _, site in sites], np.int64),
            key_S=tuple(f"{prefix}/{site.key}" for _, prefix, site in sites),
            sha256_S=tuple(site.sha256 for _, _, site in sites),
        )

    def held_out(self, fold: int) -> NDArray[np.bool_]:
        """Whether a fold validates on each well, (W,)."""
        more = [k for k, name in enumerate(self.experiments) if fold in self.more_folds.get(name, ())]
        return np.asarray((self.fold_W == fold) | ((self.fold_W >= 0) & np.isin(self.experiment_W, more)))

    @property
    def wells(self) -> int:
        """How many wells there are."""
        return len(self.id_code_W)

    @property
    def sites(self) -> int:
        """How many sites there are."""
        return len(self.key_S)

    def sites_of(self, wells: NDArray[np.integer]) -> NDArray[np.int64]:
        """Indices of the sites of some wells, well by well; wells in any order, repeats allowed."""
        first = self.first_site_W[wells]
        counts = self.first_site_W[np.asarray(wells) + 1] - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(first, counts) + within, np.int64)


class SiteReader:
    """The pixels of a manifest's sites; threads may share it, and then fetch and decode in parallel.

    With `verify`, a chunk's SHA-256 is compared the first time this process reads it, and whenever it enters the node's
    cache. Packed plates are immutable, so this finds whatever was packed, written or cached wrongly; hashing again each epoch
    would cost as much as decoding, and transport and memory have their own checks. Size, Blosc's header and its stream are
    always checked.

    Args:
        store: the store that the manifest's prefixes are relative to.
        manifest: the packed screen.
        table: SiteTable.of(manifest), if the caller has it already.
        verify: compare chunks with their SHA-256.
        node_cache: packed sites on this node's disk; filled with what is fetched.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        table: SiteTable | None = None,
        verify: bool = False,
        node_cache: NodeCache | None = None,
    ) -> None:
        self._store = store
        self._shape = (len(manifest.channels), *manifest.image_shape)
        self._dtype = np.dtype(manifest.dtype)
        self.table = SiteTable.of(manifest) if table is None else table
        self._verify = verify
        self._verified_S = np.zeros(self.table.sites, dtype=np.bool_)
        self._node_cache = node_cache
        self._own = threading.local()

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> Pixels:
        """Reads sites, as the table numbers them, in any order, repeats allowed; uint8 or uint16 (B, C, H, W).

        Raises:
            InputError: a chunk is missing or broken; names plate, well and site.
        """
        pixels_BCHW = np.empty((len(indices), *self._shape), self._dtype)
        self.read_into(np.asarray(indices, dtype=np.intp), list(pixels_BCHW))
        return pixels_BCHW

    def read_into(self, sites: NDArray[np.intp], out: Sequence[Pixels]) -> None:
        """Reads each site into its array, shape (C, H, W), of the manifest's type, C-contiguous. Raises as `read`."""
        elsewhere = [
            (site, out_CHW)
            for site, out_CHW in zip(sites.tolist(), out, strict=True)
            if not self._from_node(site, out_CHW) and not self._from_file(site, out_CHW)
        ]
        if not elsewhere:
            return
        keys = [self.table.key_S[site] for site, _ in elsewhere]
        chunks: Sequence[memoryview | bytes]
        try:
            chunks = [self._store.view(keys[0])] if len(keys) == 1 else self._store.get_many(keys)
        except MissingObjectError:
            raise self._first_missing([site for site, _ in elsewhere]) from None
        for (site, out_CHW), chunk in zip(elsewhere, chunks, strict=True):
            self._fetched(site, chunk, out_CHW)

    def _from_node(self, site: int, out_CHW: Pixels) -> bool:
        """Reads from the node's cache; False if the chunk is missing or damaged there."""
        if self._node_cache is None:
            return False
        digest, buffer = self.table.sha256_S[site], self._buffer(site)
        count = self._node_cache.read_into(digest, buffer)
        if count < 0:
            return False
        try:
            self._decode(site, buffer[:count], out_CHW)
        except BadChunkError:
            self._node_cache.drop(digest)
            return False
        return True

    def _from_file(self, site: int, out_CHW: Pixels) -> bool:
        """Reads from the store's own file; False if that fails, so that the store reports why."""
        if self._store.root is None:
            return False
        buffer = self._buffer(site)
        try:
            with open(f"{self._store.root}/{self.table.key_S[site]}", "rb", buffering=0) as file:
                count = file.readinto(buffer) or 0
        except OSError:
            return False
        self._fetched(site, buffer[:count], out_CHW)
        return True

    def _fetched(self, site: int, chunk: memoryview | bytes, out_CHW: Pixels) -> None:
        """Decodes a chunk from the store, and adds it to the node's cache."""
        try:
            self._decode(site, chunk, out_CHW, entering=self._node_cache is not None)
        except BadChunkError as error:
            raise self._broken(site, str(error)) from None
        if self._node_cache is not None:
            self._node_cache.add(self.table.sha256_S[site], chunk)

    def _decode(self, site: int, chunk: memoryview | bytes, out_CHW: Pixels, entering: bool = False) -> None:
        """Raises BadChunkError if the chunk is not the one of the manifest."""
        size = self.table.size_S[site]
        if len(chunk) != size:
            more = " or more" if len(chunk) > size else ""
            raise BadChunkError(f"has {len(chunk)} bytes{more}, the manifest says {size}")
        slot = _slots.get()
        try:
            if entering or (self._verify and not self._verified_S[site]):
                if hashlib.sha256(chunk).hexdigest() != self.table.sha256_S[site]:
                    raise BadChunkError("does not match its SHA-256")
                self._verified_S[site] = True
            decode_chunk(chunk, out_CHW)
        finally:
            _slots.put(slot)

    def _buffer(self, site: int) -> memoryview:
        """The calling thread's buffer for a chunk, one byte longer, to detect a chunk that is too long."""
        size = int(self.table.size_S[site]) + 1
        buffer: bytearray = getattr(self._own, "buffer", bytearray())
        if len(buffer) < size:
            self._own.buffer = buffer = bytearray(size + size // 4)
        return memoryview(buffer)[:size]

    def _first_missing(self, sites: list[int]) -> InputError:
        """Finds the missing chunk, one request at a time, for an error message."""
        for site in sites:
            try:
                self._store.get(self.table.key_S[site])
            except MissingObjectError:
                return self._broken(site, "is missing")
        return self._broken(sites[0], "or another of its batch was missing for a moment")

    def _broken(self, site: int, problem: str) -> InputError:
        table = self.table
        well = table.well_S[site]
        plate = table.plate_W[well]
        experiment = table.experiments[table.experiment_P[plate]]
        return InputError(
            f"{experiment} plate {table.plate_name_P[plate]}, well {table.well_W[well]}, site {table.site_S[site]}: "
            f"its chunk {table.key_S[site]} {problem}; delete the plate from the store and run normalize again"
        )
