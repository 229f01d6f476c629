"""Joins packed plates with what the tables say of their wells: the screen and its held-out half. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.core.config import CHANNELS, PackConfig
from components.core.screen.histograms import PlateKey
from components.core.screen.packing import PackResult
from components.core.screen.wells import Plate, Screen
from components.core.storage.manifest import Manifest, PlateRecord, WellRecord


def build_manifest(
    screen: Screen,
    packed: Mapping[PlateKey, PackResult],
    holdout: bool,
    store: str,
    image_size: int,
    codec: PackConfig,
    folds: Mapping[str, int],
    warnings: Sequence[str],
) -> Manifest:
    """One half of a packed screen.

    Args:
        screen: what the tables say.
        packed: the packed plates by experiment and plate.
        holdout: the held-out experiments, as unlabelled and with their treatments' labels hidden, or all others.
        store: address that the plates' prefixes are relative to.
        image_size: side, pixels.
        codec: how the chunks are packed.
        folds: fold by experiment.
        warnings: what the user should look at in this half.
    """
    plates = [
        _join(plate, packed[plate.experiment, plate.plate]) for plate in screen.plates if plate.holdout == holdout
    ]
    return Manifest(
        store=store,
        channels=len(CHANNELS),
        image_size=image_size,
        codec=codec,
        vocabulary=screen.vocabulary,
        folds=dict(folds),
        plates=tuple(plates),
        warnings=tuple(warnings),
    )


def holdout_labels(screen: Screen) -> list[tuple[str, str]]:
    """The labels that the held-out manifest hides: (id_code, siRNA) of every held-out treatment well."""
    return [
        (well.id_code, well.sirna)
        for plate in screen.plates
        for well in plate.wells
        if plate.holdout and well.well_type == "treatment" and well.sirna is not None
    ]


def _join(plate: Plate, result: PackResult) -> PlateRecord:
    sites = {well.well: well.sites for well in result.packed.wells}
    return PlateRecord(
        experiment=plate.experiment,
        plate=plate.plate,
        cell_type=plate.cell_type,
        labelled=plate.labelled and not plate.holdout,
        prefix=result.prefix,
        histograms=result.packed.histograms,
        wells=tuple(
            WellRecord(
                id_code=well.id_code,
                well=well.well,
                well_type=well.well_type,
                sirna=None if plate.holdout and well.well_type == "treatment" else well.sirna,
                sites=sites[well.well],
            )
            for well in plate.wells
        ),
    )
