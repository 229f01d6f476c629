"""Manifests of a screen and of its held-out experiments: packed plates joined with the tables. Pure.

The folds of a manifest can be dealt again without the tables, so that one packed screen serves many splits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from components.core.config import FoldsConfig
from components.core.errors import shortened
from components.core.screen.batches import Packing
from components.core.screen.folds import screen_folds
from components.core.screen.histograms import PlateKey
from components.core.screen.packing import PackResult
from components.core.screen.wells import Plate, Screen
from components.core.storage.manifest import Manifest, PlateRecord, WellRecord


def build_manifest(
    screen: Screen,
    packed: Mapping[PlateKey, PackResult],
    packing: Packing,
    holdout: bool,
    folds: Mapping[str, Sequence[int]],
    well_folds: Mapping[str, int],
    warnings: Sequence[str],
    no_design: str = "",
    columns: Sequence[str] = (),
    run: str = "",
) -> Manifest:
    """One half of a packed screen.

    Args:
        screen: the tables.
        packed: the packed plates by experiment and plate.
        packing: how they were packed.
        holdout: whether the manifest is that of the held-out experiments, which are unlabelled with their treatments' labels
            hidden, or of all others.
        folds: folds by experiment; empty if wells are dealt to folds.
        well_folds: fold by id_code; empty if experiments are.
        warnings: what the user should check in this half.
        no_design: why the plate design is not used; empty if it may be.
        columns: names of the screen's own columns in tables of results.
        run: the run's key; empty if the step runs by hand.
    """
    hidden = _telling(screen)
    plates = (
        _join(plate, packed[plate.experiment, plate.plate], well_folds, hidden)
        for plate in screen.plates
        if plate.holdout == holdout
    )
    return Manifest(
        store=packing.store.uri("").rstrip("/"),
        channels=screen.channels,
        image_shape=packing.form.shape,
        dtype=packing.packed_form.dtype,
        vocabulary=screen.vocabulary,
        plates=tuple(plates),
        **_folds({} if holdout else folds),
        no_design=no_design,
        columns=tuple(columns),
        warnings=tuple(warnings),
        run=run,
    )


def dealt_again(manifest: Manifest, folds: FoldsConfig) -> Manifest:
    """The same screen with other folds: the manifest that normalize would make with this configuration of them and no prior.

    Raises:
        InputError: too few labelled experiments, or wells, for the folds.
    """
    experiments, wells = screen_folds([plate for plate in manifest.plates if plate.labelled], folds)
    plates = (plate.model_copy(update={"well_folds": _well_folds(plate, wells)}) for plate in manifest.plates)
    return manifest.model_copy(update={"plates": tuple(plates), **_folds(experiments)})


def _folds(folds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The manifest's fields of the folds by experiment."""
    more = {name: tuple(own[1:]) for name, own in folds.items() if len(own) > 1}
    return {"folds": {name: own[0] for name, own in folds.items()}, "more_folds": more}


def holdout_labels(screen: Screen, column: str, own: Sequence[str]) -> pd.DataFrame:
    """What the held-out manifest hides: id_code, the column of labels and own columns that tell them, a row a treatment well.

    `own` are the names of the screen's own columns in tables of results.
    """
    hidden = _telling(screen)
    rows = [
        (well.id_code, well.perturbation, *(well.extra[n] for n in hidden))
        for plate in screen.plates
        for well in plate.wells
        if plate.holdout and well.role == "treatment" and well.perturbation is not None
    ]
    return pd.DataFrame(rows, columns=["id_code", column, *(own[n] for n in hidden)])


def _telling(screen: Screen) -> tuple[int, ...]:
    """The screen's own columns that tell labels, such as a compound's name beside its number: no two labels share a value."""
    labels: list[dict[str, str]] = [{} for _ in screen.columns]
    shared: set[int] = set()
    for plate in screen.plates:
        for well in plate.wells:
            if well.role != "treatment" or well.perturbation is None:
                continue
            for n, value in enumerate(well.extra):
                if value and labels[n].setdefault(value, well.perturbation) != well.perturbation:
                    shared.add(n)
    return tuple(n for n, found in enumerate(labels) if found and n not in shared)


def controls_warnings(plates: Sequence[Plate], holdout: bool) -> list[str]:
    """A warning about plates without control wells, held out or not; none if the screen has no controls at all."""
    bare = [plate for plate in plates if all(well.role == "treatment" for well in plate.wells)]
    names = [plate.name for plate in bare if plate.holdout == holdout]
    return [f"no control wells on {shortened(names)}"] if names and len(bare) < len(plates) else []


def depth_warning(packing: Packing, results: Iterable[PackResult]) -> list[str]:
    """A warning if 16-bit images use the range of fewer bits, as those of cameras of 12 bits do."""
    if packing.packed_form.dtype != "uint16":
        return []
    largest = max(int(np.flatnonzero(result.packed.histograms.array.any(axis=0))[-1]) for result in results)
    bits = max(largest.bit_length(), 8)
    if bits >= 16:
        return []
    return [
        f"the images have 16 bits, but their largest value is {largest:,}: pixels of {bits} bits or fewer. Nothing is lost; "
        "standardise.domain none would scale by 65,535"
    ]


def _join(plate: Plate, result: PackResult, well_folds: Mapping[str, int], hidden: Collection[int]) -> PlateRecord:
    """The record of a plate; own columns that are `hidden` are empty in wells whose labels must not be known."""
    sites = {well.well: well.sites for well in result.packed.wells}
    return PlateRecord(
        experiment=plate.experiment,
        plate=plate.plate,
        cell_type=plate.cell_type,
        labelled=plate.labelled and not plate.holdout,
        prefix=result.prefix,
        histograms=result.packed.histograms,
        control_histograms=result.control_histograms,
        rescaled=result.packed.rescaled,
        wells=tuple(
            WellRecord(
                id_code=well.id_code,
                well=well.well,
                role=well.role,
                perturbation=None if unseen else well.perturbation,
                sites=sites[well.well],
                extra=tuple("" if unseen and n in hidden else text for n, text in enumerate(well.extra)),
            )
            for well in plate.wells
            for unseen in [plate.holdout and well.role == "treatment"]
        ),
        well_folds=_well_folds(plate, well_folds),
    )


def _well_folds(plate: Plate | PlateRecord, fold_of: Mapping[str, int]) -> tuple[int, ...]:
    """The folds of a plate's wells; empty if none of them has one."""
    folds = tuple(fold_of.get(well.id_code, -1) for well in plate.wells)
    return folds if any(fold >= 0 for fold in folds) else ()
