"""The wells that a fold trains and validates on, and the screen's images for the training device. NumPy and torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.inference import Images
from components.core.learning.loader import SiteCache
from components.core.learning.standardise import Standardiser
from components.core.learning.step_settings import LearningSettings
from components.core.learning.team import Team
from components.core.screen.histograms import domain_statistics
from components.core.screen.packed import CORES, SiteReader
from components.core.screen.site_table import TREATMENT, SiteTable
from components.core.storage.interface import FileReader, ObjectReader
from components.core.storage.manifest import Manifest
from components.core.storage.node_cache import NodeCache


@dataclass(frozen=True)
class FoldWells:
    """Wells of one fold, as rows of the well table.

    Attributes:
        training: wells whose labels may be used: treatments of the other folds, and controls.
        validation: treatment wells of the fold itself; their labels select checkpoints and nothing else.
        unlabelled: treatment wells of unlabelled experiments.
    """

    training: NDArray[np.intp]
    validation: NDArray[np.intp]
    unlabelled: NDArray[np.intp]

    @property
    def hidden(self) -> NDArray[np.intp]:
        """Validation and unlabelled wells: their images are trained on, their labels are hidden."""
        return np.concatenate([self.validation, self.unlabelled])


def fold_wells(
    table: SiteTable, fold: int, controls: Literal["all", "training"], cell_type: str | None = None
) -> FoldWells:
    """Splits a screen's wells for one fold.

    Args:
        table: the screen, without held-out experiments.
        fold: the fold whose experiments, or wells, validate.
        controls: the labelled controls that join training: of all experiments, or of those with treatments to train on.
        cell_type: only wells of this one; None for all.

    Raises:
        InputError: there is nothing to train on.
    """
    treatment_W = table.well_type_W == TREATMENT
    chosen_W = np.ones(table.wells, dtype=bool)
    if cell_type is not None:
        if cell_type not in table.cell_types:
            raise InputError(f"cell type {cell_type!r} has no plates in the screen; it holds {list(table.cell_types)}")
        chosen_W = table.cell_type_W == table.cell_types.index(cell_type)
    labelled_W = treatment_W & table.labelled_W & (table.class_W >= 0)
    supervised_W = labelled_W & (table.fold_W >= 0) & (table.fold_W != fold)
    control_W = ~treatment_W & (table.class_W >= 0)
    if controls == "training":
        control_W &= np.isin(table.experiment_W, table.experiment_W[supervised_W])
    training_W = chosen_W & (supervised_W | control_W)
    if not (training_W & treatment_W).any():
        raise InputError(
            f"fold {fold}: no labelled treatment wells to train on"
            + (f" for cell type {cell_type}" if cell_type else "")
            + "; use fewer folds or more labelled experiments"
        )
    return FoldWells(
        training=np.flatnonzero(training_W),
        validation=np.flatnonzero(chosen_W & treatment_W & table.labelled_W & (table.fold_W == fold)),
        unlabelled=np.flatnonzero(chosen_W & treatment_W & ~table.labelled_W),
    )


def open_images(
    settings: LearningSettings | RunConfig,
    manifest: Manifest,
    store: ObjectReader,
    device: torch.device,
    team: Team | None = None,
    reference: Manifest | None = None,
) -> Images:
    """The images of a manifest, read and standardised as configured.

    Args:
        settings: the sections standardise, batch_norm, augment and loader.
        manifest: the packed screen.
        store: where its plates are.
        device: where batches are computed.
        team: the processes that share inference; None for this one alone.
        reference: the training screen, whose statistics are used for domains wider than an experiment; None for the
            manifest's own.

    Raises:
        InputError: a cell type that the reference lacks.
    """
    standardise, loader = settings.standardise, settings.loader
    table = SiteTable.of(manifest)
    statistics = domain_statistics(manifest, standardise.domain)
    if reference is not None and standardise.domain in ("global", "cell_type"):
        known = {p.cell_type: (p.experiment, p.plate) for p in reference.plates}
        of_reference = domain_statistics(reference, standardise.domain)
        for plate in manifest.plates:
            if plate.cell_type not in known:
                raise InputError(
                    f"experiment {plate.experiment}: the training screen has no plates of cell type {plate.cell_type}, "
                    f"whose statistics standardise.domain {standardise.domain} needs; use plate or experiment"
                )
        statistics = {(p.experiment, p.plate): of_reference[known[p.cell_type]] for p in manifest.plates}
    means, deviations = zip(*(statistics[p.experiment, p.plate] for p in manifest.plates), strict=True)
    shape = (manifest.channels, manifest.image_size, manifest.image_size)
    node_cache = None
    if loader.node_cache is not None:
        node_cache = NodeCache(Path(loader.node_cache), int(loader.node_cache_gib * 2**30))
    return Images(
        table=table,
        cache=SiteCache(
            SiteReader(store, manifest, table, verify=True, node_cache=node_cache),
            table,
            shape,
            loader.cache_gib * 2**30,
            # Files have no latency to hide, and more threads than cores only evict each other's pixels from the processor's caches.
            threads=min(loader.requests, 2 * CORES) if isinstance(store, FileReader) else loader.requests,
            ahead=loader.batches_ahead,
            pinned=device.type == "cuda",
        ),
        standardise=Standardiser(
            torch.from_numpy(np.stack(means)), torch.from_numpy(np.stack(deviations)), standardise.jitter, device
        ),
        augment=settings.augment,
        batch_norm=settings.batch_norm,
        team=team or Team(),
    )
