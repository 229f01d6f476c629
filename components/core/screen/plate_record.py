"""The record of a packed plate, and the keys under which a later run finds it without reading an image.

    plates/EXPERIMENT_PlateP-DIGEST/plate.json  the record, written last: a prefix without it holds no plate
    fingerprints/DIGEST.json                    the plate last used for files of this listing
    copies/DIGEST.json                          the plate last packed from files of these names and sizes

DIGEST is computed from a listing: names, sizes and versions of the plate's files, and the packing settings. Unlike a digest
of the pixels it is known before the first image is read, so that chunks can be written as they are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from components.core.config import FrozenModel
from components.core.errors import MissingObjectError, StepError
from components.core.screen.batches import Packing
from components.core.screen.images import PlateFiles
from components.core.screen.wells import Plate
from components.core.storage.manifest import SiteRecord

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore

PACKING = 2
"""Version of what is written under a plate's prefix; part of every digest, so that a change packs all plates again."""


class PackedWell(FrozenModel):
    """The packed sites of a well."""

    well: str
    sites: tuple[SiteRecord, ...]


class PackedPlate(FrozenModel):
    """The record of a packed plate: everything about it that does not depend on the tables."""

    packing: int = PACKING
    experiment: str
    plate: int
    image_size: int
    images: str = Field(description="images_digest of its image files")
    histograms: tuple[tuple[int, ...], ...] = Field(description="(channels, 256) pixel counts over all its sites")
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
        settings = [PACKING, packing.image_size, packing.pack.model_dump(), plate.experiment, plate.plate]
        exact = _digest([settings, files.facts])
        similar = _digest([settings, [(file.name, file.size) for file in files.facts]])
        prefix = f"plates/{plate.experiment}_Plate{plate.plate}-{exact[:32]}"
        return cls(prefix, f"fingerprints/{exact}.json", f"copies/{similar}.json")


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


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
