"""The manifest: everything that a step must know about a packed screen, without opening the store. Pure data (pydantic).

`normalize` writes two, for the screen and for the held-out experiments. The second has no treatment labels: those go to a
table that only the report reads.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from components.core.config import FrozenModel, RunConfig, parse
from components.core.errors import InputError
from components.core.storage.counts import NO_COUNTS, Counts
from components.core.storage.digests import digest_text
from components.core.stored_record import StoredRecord

Role = Literal["treatment", "positive_control", "negative_control"]
ROLES: tuple[Role, ...] = get_args(Role)
PixelType = Literal["uint8", "uint16"]


class SiteRecord(FrozenModel):
    """One packed site: all channels in one chunk."""

    site: int = Field(description="site number, from 1")
    key: str = Field(description="chunk key relative to the plate's prefix")
    size: int = Field(description="bytes of the chunk")
    sha256: str = Field(description="digest of the chunk's bytes")


class WellRecord(FrozenModel):
    """One well and what steps may know about it."""

    id_code: str = Field(description="EXPERIMENT_PLATE_WELL")
    well: str = Field(description="row letter and column, B03")
    role: Role
    perturbation: str | None = Field(description="label in the input's encoding; None if hidden")
    sites: tuple[SiteRecord, ...]
    extra: tuple[str, ...] = Field((), description="values of the screen's own columns")


class PlateRecord(FrozenModel):
    """One packed plate: immutable, an OME-Zarr 0.5 HCS plate under `prefix`."""

    experiment: str
    plate: str = Field(description="its name; any text")
    cell_type: str
    labelled: bool = Field(description="whether train.csv names its treatments")
    prefix: str = Field(description="key prefix of the plate in the store, without a trailing slash")
    histograms: Counts = Field(description="(channels, grey values) pixel counts over all its sites")
    control_histograms: Counts = Field(
        NO_COUNTS, description="those over the sites of its controls; empty without controls"
    )
    rescaled: tuple[tuple[int, int], ...] = Field(
        (),
        description="for each channel the grey values of the image files that are 0 and 255 here; empty without rescaling",
    )
    wells: tuple[WellRecord, ...]
    well_folds: tuple[int, ...] = Field(
        (), description="folds of the wells, in their order, -1 for none; empty unless folds hold out plates or wells"
    )


class Vocabulary(FrozenModel):
    """The classes of a screen, in class order: treatments, positive controls, negative controls."""

    treatments: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """All labels in class order."""
        return self.treatments + self.positives + self.negatives

    def index(self) -> dict[str, int]:
        """Class index by label."""
        return {label: k for k, label in enumerate(self.classes)}


class PlateDesign(FrozenModel):
    """The prior: which perturbations share a plate, and where the labelled experiments hold them."""

    plates: tuple[str, ...] = Field(description="names of the plates, in natural order")
    groups: tuple[tuple[str, ...], ...] = Field(description="treatments of each group, in class order")
    arrangements: dict[str, dict[str, int]] = Field(description="for each labelled experiment the group on each plate")


class ReferenceModel(FrozenModel):
    """The published model whose training screen a manifest represents, with the prior and temperatures fitted on its labels."""

    fingerprint: str
    address: str = Field(description="where it is published, ADDRESS_OF_STORE/models/FINGERPRINT")
    design: PlateDesign | None = Field(description="None if its screen has none, or its prior was switched off")
    temperatures: dict[str, dict[str, float]] = Field(
        description="of confidences, fitted out of fold, by cell type: raw, group, balanced, and balanced_N of plates with N "
        "wells; 1 if not fitted"
    )


class Manifest(StoredRecord):
    """A packed screen; or, when new plates are predicted, the reference to the training screen: its plates without wells."""

    KIND = "screen manifest"
    IF_DAMAGED = "run again"

    schema_version: int = Field(2, ge=1, description="version of the record's format")
    store: str = Field(description="s3://bucket[/prefix] that the plates' prefixes are relative to")
    channels: tuple[str, ...] = Field(description="names, in the order of the pixels")
    image_shape: tuple[int, int] = Field(description="height and width of an image, pixels")
    dtype: PixelType = Field("uint8", description="type of the packed pixels")
    vocabulary: Vocabulary
    folds: dict[str, int] = Field(
        description="fold by labelled experiment, the one that validates on it; empty if folds hold out wells"
    )
    more_folds: dict[str, tuple[int, ...]] = Field(
        {},
        exclude_if=lambda folds: not folds,  # digests of other screens do not depend on this field
        description="further folds that validate on an experiment, where folds overlap",
    )
    plates: tuple[PlateRecord, ...]
    no_design: str = Field("", description="why the plate design is not used; empty if it may be")
    columns: tuple[str, ...] = Field((), description="names of the screen's own columns, which go to tables of results")
    warnings: tuple[str, ...] = ()
    run: str = Field(
        "", description="key of the run that packs it, under which finished folds are listed; may be empty"
    )
    config: dict[str, Any] = Field(
        {},
        description="the run's configuration, which all later steps read; sections that no step reads may be missing",
    )
    model: ReferenceModel | None = Field(
        None,
        exclude_if=lambda model: model is None,  # digests of screens do not depend on this field
        description="the model that new plates are predicted with",
    )

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of the plates' cell types, sorted."""
        return tuple(sorted({plate.cell_type for plate in self.plates}))

    @property
    def split(self) -> Literal["experiment", "well"]:
        """What a fold holds out: whole experiments, or treatment wells, of whole plates or single ones."""
        return "well" if any(plate.well_folds for plate in self.plates) else "experiment"

    @property
    def has_no_design(self) -> bool:
        """Whether the plate design must not be used: there is none, or it would reveal wells that a fold holds out."""
        return bool(self.no_design) or self.split != "experiment"

    def validating(self, experiment: str) -> frozenset[int]:
        """The folds that validate on a labelled experiment, where folds hold out experiments."""
        return frozenset({self.folds[experiment], *self.more_folds.get(experiment, ())})

    def digest(self) -> str:
        """SHA-256 of the manifest's content without the plates' addresses, the run, its configuration and what follows from it.

        Screens of the same pixels and tables have the same digest, whether they came from a disk or a bucket.
        """
        unread: dict[str, Any] = {
            "store": True,
            "run": True,
            "config": True,
            "no_design": True,
            "plates": {"__all__": {"prefix"}},
        }
        return digest_text(self.model_dump_json(exclude=unread))

    def run_config(self) -> RunConfig:
        """The run's configuration; InputError if the manifest has none, or another version's."""
        if not self.config:
            raise InputError("the screen's manifest has no configuration; run normalize again, or give --config")
        return parse(RunConfig, self.config, source="configuration in the screen's manifest")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads a manifest file; InputError if it is damaged or has a newer schema."""
        content, collects = path.read_bytes(), gc.isenabled()
        gc.disable()  # RxRx1's 200,000 objects are read in 0.4 s instead of 1 to 2 s: none of them is garbage
        try:
            return cls.parse(content, str(path))
        finally:
            if collects:
                gc.enable()
