"""Inputs of report for new plates, made from the synthetic run: no label in their manifest, no well in the reference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.core.config import PackConfig
from components.core.screen.ome_zarr import encode_chunk
from components.core.screen.packed import SiteReader
from components.core.storage.manifest import Manifest, PlateRecord, ReferenceModel
from tests.components.report.conftest import Chunks, SyntheticRun

MODEL = ReferenceModel(
    fingerprint="4c30" * 16, address="s3://cellsignal/models/" + "4c30" * 16, design=None, temperatures={}
)
FROM = {"HUVEC": "holdout", "RPE": "unlabelled"}
"""The role, in the synthetic run, of the new plates of each cell type."""


@dataclass
class NewPlates:
    """The arguments of `report.step.run`, on disk, and their plates."""

    arguments: dict[str, Any]
    plates: Manifest
    reference: Manifest
    labels: dict[str, str]
    chunks: Chunks

    def write(self) -> None:
        """Writes both manifests."""
        for name, manifest in (("holdout", self.plates), ("screen", self.reference)):
            Path(self.arguments[name]).write_text(manifest.model_dump_json())

    def truth(self, path: Path, labels: Mapping[str, str] | None = None) -> Path:
        """Writes a table of labels, by default of all treatment wells, and passes it to the report."""
        known = self.labels if labels is None else labels
        path.write_text("".join(f"{id_code},{sirna}\n" for id_code, sirna in {"id_code": "sirna", **known}.items()))
        self.arguments["truth"] = path
        return path

    def pixels(self) -> NDArray[np.uint8]:
        """All sites in the manifest's order."""
        reader = SiteReader(self.chunks, self.plates)
        return reader.read(np.arange(reader.table.sites))

    def replace_site(self, plate: int, well: int, site: int, pixels_CSS: NDArray[np.uint8]) -> str:
        """Replaces a site's pixels; plate, well and site count from 0. Returns the well's id_code."""
        of_plate = self.plates.plates[plate]
        of_well = of_plate.wells[well]
        chunk = encode_chunk(pixels_CSS, PackConfig())
        self.chunks.objects[f"{of_plate.prefix}/{of_well.sites[site].key}"] = chunk
        changed = of_well.sites[site].model_copy(
            update={"size": len(chunk), "sha256": hashlib.sha256(chunk).hexdigest()}
        )
        sites = (*of_well.sites[:site], changed, *of_well.sites[site + 1 :])
        wells = list(of_plate.wells)
        wells[well] = of_well.model_copy(update={"sites": sites})
        plates = list(self.plates.plates)
        plates[plate] = of_plate.model_copy(update={"wells": tuple(wells)})
        self.plates = self.plates.model_copy(update={"plates": tuple(plates)})
        return of_well.id_code


def make_new_plates(run: SyntheticRun, folder: Path) -> NewPlates:
    """Writes the inputs of a prediction of one HUVEC and one RPE experiment."""
    screen, holdout = Manifest.read(run.screen), Manifest.read(run.holdout)
    shown = [p for p in (*holdout.plates, *screen.plates) if _is_new(p, holdout)]
    plates = screen.model_copy(
        update={
            "folds": {},
            "warnings": ("HUVEC-05 plate 2: no negative control",),
            "plates": tuple(
                plate.model_copy(
                    update={"wells": tuple(well.model_copy(update={"sirna": None}) for well in plate.wells)}
                )
                for plate in shown
            ),
        }
    )
    reference = screen.model_copy(
        update={
            "folds": {},
            "warnings": (),
            "model": MODEL,
            "plates": tuple(plate.model_copy(update={"wells": ()}) for plate in screen.plates),
        }
    )
    uris = []
    for cell_type, role in FROM.items():
        own = next(Path(uri) for uri in run.uris if uri.endswith(cell_type))
        out = folder / f"assign-{cell_type}"
        out.mkdir(parents=True)
        for name in ("assign.json", "meta.json"):
            (out / name).write_text((own / name).read_text())
        header = (own / "oof.csv").read_text().splitlines()[0] + "\n"
        for name in ("oof", "unlabelled"):
            (out / f"{name}.csv").write_text(header)
        (out / "holdout.csv").write_text((own / f"{role}.csv").read_text())
        uris.append(str(out))
    treatments = {w.id_code for p in plates.plates for w in p.wells if w.well_type == "treatment"}
    chunks = Chunks()
    chunks.objects = dict(run.chunks.objects)
    arguments = {
        "config": run.config,
        "screen": folder / "reference.json",
        "holdout": folder / "plates.json",
        "holdout_labels": folder / "labels.csv",
        "truth": None,
        "uris": uris,
        "out": folder / "out",
        "lineage": {"code_version": "0.1.0", "model": {"name": "lab", "run": "lab-1", "generation": 3}},
        "store": chunks,
    }
    made = NewPlates(arguments, plates, reference, {i: run.labels[i] for i in run.labels if i in treatments}, chunks)
    made.write()
    arguments["holdout_labels"].write_text("id_code,sirna\n")
    return made


def _is_new(plate: PlateRecord, holdout: Manifest) -> bool:
    role = "holdout" if plate in holdout.plates else "labelled" if plate.labelled else "unlabelled"
    return FROM.get(plate.cell_type) == role
