"""Small manifests of plates, most without images. For tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.core.config import CHANNELS
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord


def plate_record(
    experiment: str,
    plate: str | int,
    wells: Mapping[str, tuple[str, str | None]] | Iterable[WellRecord] = (),
    labelled: bool = False,
    prefix: str = "p",
    **fields: Any,
) -> PlateRecord:
    """A plate of the experiment's cell type with the wells' records, or types and perturbations of its wells by name."""
    if isinstance(wells, Mapping):
        wells = [
            WellRecord(
                id_code=f"{experiment}_{plate}_{name}", well=name, role=kind, perturbation=perturbation, sites=()
            )  # type: ignore[arg-type]
            for name, (kind, perturbation) in wells.items()
        ]
    known = {"experiment": experiment, "plate": str(plate), "cell_type": experiment.split("-")[0], "labelled": labelled}
    return PlateRecord(**{**known, "prefix": prefix, "histograms": (), "wells": tuple(wells), **fields})


def manifest(plates: Iterable[PlateRecord], treatments: Iterable[str] = ("a",), **fields: Any) -> Manifest:
    """A manifest of the plates, with the positive control `pos` and the negative control `neg`."""
    vocabulary = Vocabulary(treatments=tuple(treatments), positives=("pos",), negatives=("neg",))
    usual = {"store": "s3://b", "channels": CHANNELS, "image_shape": (8, 8), "folds": {}}
    return Manifest(**{**usual, "vocabulary": vocabulary, "plates": tuple(plates), **fields})
