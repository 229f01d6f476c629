"""A manifest as flat arrays, for sampling and batching 125,000 sites. Pure NumPy.

P plates, W wells, S sites, all in the manifest's order. A well's sites are neighbours: from
first_site_W[w] up to first_site_W[w + 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from components.core.storage.manifest import Manifest, WellType

WELL_TYPES: tuple[WellType, ...] = get_args(WellType)
TREATMENT, POSITIVE_CONTROL, NEGATIVE_CONTROL = range(len(WELL_TYPES))
"""Codes in SiteTable.well_type_W."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteTable:
    """Plates, wells and sites of a manifest."""

    experiments: tuple[str, ...]  # in the manifest's order; experiment_P and experiment_W index it
    cell_types: tuple[str, ...]  # sorted; cell_type_P and cell_type_W index it
    plate_number_P: NDArray[np.int32]
    experiment_P: NDArray[np.int32]
    cell_type_P: NDArray[np.int32]
    id_code_W: NDArray[np.str_]
    well_W: NDArray[np.str_]
    class_W: NDArray[np.int32]  # index into Vocabulary.classes, -1 if the label is hidden
    well_type_W: NDArray[np.int8]  # TREATMENT, POSITIVE_CONTROL or NEGATIVE_CONTROL
    plate_W: NDArray[np.int32]
    experiment_W: NDArray[np.int32]
    cell_type_W: NDArray[np.int32]
    fold_W: NDArray[np.int32]  # validates on the well's experiment, or on the well if folds hold out wells; -1 for none
    labelled_W: NDArray[np.bool_]  # whether the well's experiment is labelled; controls always have labels
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
        cell_types = tuple(sorted({plate.cell_type for plate in plates}))
        experiment_P = np.array([experiments.index(plate.experiment) for plate in plates], np.int32)
        cell_type_P = np.array([cell_types.index(plate.cell_type) for plate in plates], np.int32)
        folds = [plate.well_folds or [manifest.folds.get(plate.experiment, -1)] * len(plate.wells) for plate in plates]
        labelled_P = np.array([plate.labelled for plate in plates], np.bool_)
        plate_W = np.array([p for p, _ in wells], np.int32)
        classes = manifest.vocabulary.index()
        unknown = next((well for _, well in wells if well.sirna is not None and well.sirna not in classes), None)
        if unknown is not None:
            raise ValueError(f"well {unknown.id_code}: siRNA {unknown.sirna!r} is not in the manifest's vocabulary")
        sites_W = np.array([len(well.sites) for _, well in wells], np.int64)
        return cls(
            experiments=experiments,
            cell_types=cell_types,
            plate_number_P=np.array([plate.plate for plate in plates], np.int32),
            experiment_P=experiment_P,
            cell_type_P=cell_type_P,
            id_code_W=np.array([well.id_code for _, well in wells], np.str_),
            well_W=np.array([well.well for _, well in wells], np.str_),
            class_W=np.array([-1 if well.sirna is None else classes[well.sirna] for _, well in wells], np.int32),
            well_type_W=np.array([WELL_TYPES.index(well.well_type) for _, well in wells], np.int8),
            plate_W=plate_W,
            experiment_W=experiment_P[plate_W],
            cell_type_W=cell_type_P[plate_W],
            fold_W=np.array([fold for of_plate in folds for fold in of_plate], np.int32),
            labelled_W=labelled_P[plate_W],
            first_site_W=np.concatenate([[0], np.cumsum(sites_W)]).astype(np.int64),
            well_S=np.array([w for w, _, _ in sites], np.int32),
            site_S=np.array([site.site for _, _, site in sites], np.int16),
            size_S=np.array([site.size for _, _, site in sites], np.int64),
            key_S=tuple(f"{prefix}/{site.key}" for _, prefix, site in sites),
            sha256_S=tuple(site.sha256 for _, _, site in sites),
        )

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
