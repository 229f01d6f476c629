"""What a packed plate holds that depends on the tables: counts of its controls, labels for viewers. Uses ObjectStore.

The packed pixels and their record do not depend on the tables. These objects beside them may be written again when a table
changed; no step reads the labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.core.config import FrozenModel
from components.core.errors import InputError, MissingObjectError
from components.core.processes import cores
from components.core.screen.histograms import GREYS, histogram
from components.core.screen.ome_zarr import BadChunkError, decode_chunk, well_document
from components.core.screen.plane_header import ImageForm
from components.core.screen.wells import Plate
from components.core.storage.counts import NO_COUNTS, Counts
from components.core.storage.manifest import SiteRecord

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore


class ControlCounts(FrozenModel):
    """Pixel counts over a plate's control wells."""

    wells: tuple[str, ...]
    histograms: Counts


def controls_of(plate: Plate) -> frozenset[str]:
    """The plate's control wells."""
    return frozenset(well.well for well in plate.wells if well.role != "treatment")


def write_controls(store: ObjectStore, prefix: str, wells: frozenset[str], histograms: Counts) -> None:
    """Writes the counts of a plate's controls."""
    found = ControlCounts(wells=tuple(sorted(wells)), histograms=histograms)
    store.put(_controls_key(prefix, wells), found.model_dump_json().encode())


def find_controls(
    store: ObjectStore, prefix: str, wells: frozenset[str], sites: Iterable[tuple[str, SiteRecord]], form: ImageForm
) -> Counts:
    """The counts of a packed plate's controls: those that were written, or else from its chunks, and written now.

    Args:
        store: holds the plate.
        prefix: the plate's.
        wells: its controls.
        sites: its packed sites, each with its well.
        form: of its pixels.

    Raises:
        InputError: a chunk is missing or damaged.
    """
    if not wells:
        return NO_COUNTS
    with suppress(MissingObjectError, ValueError):
        return ControlCounts.model_validate_json(store.get(_controls_key(prefix, wells))).histograms

    def counted(records: Sequence[SiteRecord]) -> NDArray[np.int64]:
        """Counts over some sites: a sum for each thread, because those of a 16-bit site take megabytes."""
        pixels_CHW = np.empty(form.site_shape, form.dtype)
        total_CG = np.zeros((len(form.channels), GREYS[form.dtype]), np.int64)
        for record in records:
            key = f"{prefix}/{record.key}"
            try:
                decode_chunk(store.get(key), pixels_CHW)
            except (BadChunkError, MissingObjectError) as error:
                reason = error if isinstance(error, BadChunkError) else "is missing"
                raise InputError(
                    f"{store.uri(key)}: {reason}; delete the plate from the store and run normalize again"
                ) from None
            total_CG += histogram(pixels_CHW)
        return total_CG

    controls, threads = [record for well, record in sites if well in wells], cores()
    with ThreadPoolExecutor(threads, thread_name_prefix="controls") as pool:
        sums = list(pool.map(counted, (controls[n::threads] for n in range(threads))))
    found = Counts(np.sum(sums, axis=0)) if controls else NO_COUNTS
    write_controls(store, prefix, wells, found)
    return found


def write_labels(store: ObjectStore, prefix: str, plate: Plate) -> int:
    """Writes the wells' metadata with role and perturbation, unless they are there; returns the number of objects.

    A perturbation that training must not know is left out. Where no label is known, as of new plates, those of an earlier run
    of the same plate stay.
    """
    documents = []
    for well in plate.wells:
        hidden = plate.holdout and well.role == "treatment"
        facts = {"role": well.role, "perturbation": None if hidden else well.perturbation}
        documents.append(well_document(well.well, len(well.sites), facts))
    digest = hashlib.sha256(b"\n".join(content for _, content in documents)).hexdigest()
    key = f"{prefix}/labels.json"
    with suppress(MissingObjectError, ValueError, KeyError, TypeError):
        known = plate.holdout or any(well.perturbation for well in plate.wells if well.role == "treatment")
        if json.loads(store.get(key))["sha256"] == digest or not known:
            return 0
    store.put_many((f"{prefix}/{name}", content) for name, content in documents)
    store.put(key, json.dumps({"sha256": digest}).encode())
    return len(documents) + 1


def _controls_key(prefix: str, wells: frozenset[str]) -> str:
    return f"{prefix}/controls-{hashlib.sha256(' '.join(sorted(wells)).encode()).hexdigest()[:16]}.json"
