"""What a store knows of a packed plate, and by which keys a later run finds it again without reading an image.

    plates/EXPERIMENT_PlateP-DIGEST/plate.json  the record, written last; whatever has none is not a plate
    fingerprints/DIGEST.json                    leads from files to the plate that was used for them again
    copies/DIGEST.json                          leads to the plate last packed from files of these names and sizes

The digest of a plate's name is taken of a listing: names, sizes and versions of its files, and how they are packed. Unlike
a digest of the images it is known before the first is read, so that chunks can be written as they are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import Field, ValidationError

from components.core.config import FrozenModel, PackConfig
from components.core.errors import StepError
from components.core.screen.images import PlateFiles
from components.core.screen.wells import Plate
from components.core.storage.interface import MissingObjectError, ObjectReader, ObjectWriter
from components.core.storage.manifest import SiteRecord

PACKING = 2
"""Version of what lies under a plate's prefix; part of every digest, so that a change packs anew."""


class PackedWell(FrozenModel):
    """The packed sites of a well."""

    well: str
    sites: tuple[SiteRecord, ...]


class PackedPlate(FrozenModel):
    """The record of a packed plate: all that can be known of it without the tables."""

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
    """Where a plate belongs, and where else it may be.

    Attributes:
        prefix: of the plate, if it is packed from these files.
        fingerprint: key of what leads from these files to the plate that was used for them again; each use renews it.
        copies: key of what leads from files of the same names and sizes to a prefix.
    """

    prefix: str
    fingerprint: str
    copies: str

    @classmethod
    def of(cls, plate: Plate, files: PlateFiles, image_size: int, pack: PackConfig) -> PlateKeys:
        """The keys of a plate whose files are listed."""
        settings = [PACKING, image_size, pack.model_dump(), plate.experiment, plate.plate]
        exact = _digest([settings, files.facts])
        similar = _digest([settings, [(file.name, file.size) for file in files.facts]])
        prefix = f"plates/{plate.experiment}_Plate{plate.plate}-{exact[:32]}"
        return cls(prefix, f"fingerprints/{exact}.json", f"copies/{similar}.json")


def images_digest(named: Iterable[tuple[str, str]]) -> str:
    """What makes two plates' images the same, once their names and sizes are.

    Args:
        named: name of each file and what `check_image` says of it, in any order.
    """
    return _digest(sorted(named))


def find_record(store: ObjectReader, prefix: str, address: str) -> PackedPlate | None:
    """The record of the plate under a prefix; without one, what lies there was never finished.

    Raises:
        StepError: it is not a record; `address` is how the message names the store's keys.
    """
    try:
        return PackedPlate.model_validate_json(store.get(f"{prefix}/plate.json"))
    except MissingObjectError:
        return None
    except ValidationError:
        raise StepError(
            f"{address}/{prefix}/plate.json: not the record of a packed plate; delete the plate and run again"
        ) from None


def find_plate(store: ObjectWriter, prefix: str, leads: Sequence[str]) -> tuple[str, PackedPlate] | None:
    """Prefix and record of a plate: under its own prefix, or where one of some keys leads."""
    found = find_record(store, prefix, store.uri("").rstrip("/"))
    return follow_leads(store, leads) if found is None else (prefix, found)


def follow_leads(store: ObjectWriter, leads: Sequence[str]) -> tuple[str, PackedPlate] | None:
    """Prefix and record of a plate to which one of some keys leads."""
    address = store.uri("").rstrip("/")
    for key in leads:
        try:
            elsewhere = str(json.loads(store.get(key))["prefix"])
        except (MissingObjectError, ValueError, KeyError, TypeError):
            continue  # a power cut may leave half of a file in a folder; the lead is written anew
        found = find_record(store, elsewhere, address)
        if found is not None:
            return elsewhere, found
    return None


def write_lead(store: ObjectWriter, key: str, prefix: str) -> None:
    """Makes a key lead to a plate."""
    store.put(key, json.dumps({"prefix": prefix}).encode())


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
