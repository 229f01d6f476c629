"""Small manifests of plates without images. For tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from components.core.config import PackConfig
from components.core.storage.manifest import Manifest, PlateRecord, Vocabulary, WellRecord


def plate_record(
    experiment: str, plate: int, wells: Mapping[str, tuple[str, str | None]] | None = None, **fields: Any
) -> PlateRecord:
    """An unlabelled plate of the experiment's cell type; types and siRNAs of its wells by name."""
    records = tuple(
        WellRecord(id_code=f"{experiment}_{plate}_{name}", well=name, well_type=kind, sirna=sirna, sites=())  # type: ignore[arg-type]
        for name, (kind, sirna) in (wells or {}).items()
    )
    usual = {
        "cell_type": experiment.split("-")[0],
        "labelled": False,
        "prefix": "p",
        "histograms": (),
        "wells": records,
    }
    return PlateRecord(experiment=experiment, plate=plate, **{**usual, **fields})


def manifest(plates: Iterable[PlateRecord], treatments: Iterable[str] = ("a",), **fields: Any) -> Manifest:
    """A manifest of the plates, with the positive control `pos` and the negative control `neg`."""
    vocabulary = Vocabulary(treatments=tuple(treatments), positives=("pos",), negatives=("neg",))
    usual = {
        "store": "s3://b",
        "channels": 6,
        "image_size": 8,
        "codec": PackConfig(),
        "vocabulary": vocabulary,
        "folds": {},
    }
    return Manifest(plates=tuple(plates), **{**usual, **fields})
