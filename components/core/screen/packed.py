"""Reads packed sites back: many requests in flight, decompressed straight into the batch. Reads through ObjectReader.

B sites of a batch, C channels, S side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError
from components.core.screen.chunks import BadChunkError, decode_chunk
from components.core.screen.site_table import SiteTable
from components.core.storage.interface import MissingObjectError, ObjectReader
from components.core.storage.manifest import Manifest


class SiteReader:
    """The pixels of a manifest's sites; may be shared by threads, which decode side by side."""

    def __init__(self, store: ObjectReader, manifest: Manifest, table: SiteTable | None = None, verify: bool = False):
        """Prepares to read.

        Args:
            store: where the manifest's prefixes are.
            manifest: the packed screen.
            table: SiteTable.of(manifest), where it is at hand already.
            verify: compare each chunk with its SHA-256.
        """
        self._store = store
        self._shape = (manifest.channels, manifest.image_size, manifest.image_size)
        self.table = SiteTable.of(manifest) if table is None else table
        self._verify = verify

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Reads sites.

        Args:
            indices: which sites, as the table numbers them; any order, repeats allowed.

        Returns:
            Shape (B, C, S, S), uint8.

        Raises:
            InputError: a chunk is missing or broken; names plate, well and site.
        """
        sites = [int(index) for index in indices]
        keys = [self.table.key_S[site] for site in sites]
        try:
            chunks = self._store.get_many(keys)
        except MissingObjectError:
            raise self._first_missing(sites) from None
        pixels_BCSS = np.empty((len(sites), *self._shape), np.uint8)
        for site, chunk, out_CSS in zip(sites, chunks, pixels_BCSS, strict=True):
            self._decode(site, chunk, out_CSS)
        return pixels_BCSS

    def _decode(self, site: int, chunk: bytes, out_CSS: NDArray[np.uint8]) -> None:
        if len(chunk) != self.table.size_S[site]:
            raise self._broken(site, f"has {len(chunk)} bytes, the manifest says {self.table.size_S[site]}")
        if self._verify and hashlib.sha256(chunk).hexdigest() != self.table.sha256_S[site]:
            raise self._broken(site, "does not match its SHA-256")
        try:
            decode_chunk(chunk, out_CSS)
        except BadChunkError as error:
            raise self._broken(site, str(error)) from None

    def _first_missing(self, sites: list[int]) -> InputError:
        """Finds which chunk is missing, one request at a time; only on the way to an error."""
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
            f"{experiment} plate {table.plate_number_P[plate]}, well {table.well_W[well]}, site {table.site_S[site]}: "
            f"its chunk {table.key_S[site]} {problem}; delete the plate from the store and run normalize again"
        )
