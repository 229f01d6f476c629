"""Inputs of report for new plates, made from the synthetic run: no label in their manifest, no well in the reference."""

from __future__ import annotations

import copy
import hashlib
import shutil
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
from tests.components.report.conftest import SyntheticRun, treated
from tests.tiny_screen import MemoryStore

MODEL = ReferenceModel(
    fingerprint="4c30" * 16, address="s3://cellsignal/models/" + "4c30" * 16, design=None, temperatures={}
)
NEW = {"HUVEC-04": "holdout", "RPE-03": "unlabelled"}
"""The new experiments, and their role in the synthetic run."""


@dataclass
class NewPlates:
    """The arguments of `report.step.run`, on disk, and their plates."""

    arguments: dict[str, Any]
    plates: Manifest
    reference: Manifest
    labels: dict[str, str]
    store: MemoryStore

    def write(self) -> None:
        """Writes both manifests."""
        for name, manifest in (("holdout", self.plates), ("screen", self.reference)):
            Path(self.arguments[name]).write_text(manifest.model_dump_json())

    def truth(self, path: Path, labels: Mapping[str, str] | None = None) -> None:
        """Writes a table of labels, by default of all treatment wells, and passes it to the report."""
        known = self.labels if labels is None else labels
        path.write_text("".join(f"{id_code},{sirna}\n" for id_code, sirna in {"id_code": "sirna", **known}.items()))
        self.arguments["truth"] = path

    def pixels(self) -> NDArray[np.uint8]:
        """All sites in the manifest's order."""
        reader = SiteReader(self.store, self.plates)
        return reader.read(np.arange(reader.table.sites))

    def replace_site(self, plate: int, well: int, site: int, pixels_CSS: NDArray[np.uint8]) -> str:
        """Replaces a site's pixels; plate, well and site count from 0. Returns the well's id_code."""
        chunk = encode_chunk(pixels_CSS, PackConfig())
        content = self.plates.model_dump()
        of_plate = content["plates"][plate]
        of_well = of_plate["wells"][well]
        of_site = of_well["sites"][site]
        of_site |= {"size": len(chunk), "sha256": hashlib.sha256(chunk).hexdigest()}
        self.store.put(f"{of_plate['prefix']}/{of_site['key']}", chunk)
        self.plates = Manifest.model_validate(content)
        return str(of_well["id_code"])


def make_new_plates(run: SyntheticRun, folder: Path) -> NewPlates:
    """Writes the inputs of a prediction of one HUVEC and one RPE experiment."""
    usual = run.arguments(folder / "out")
    screen, holdout = Manifest.read(usual["screen"]), Manifest.read(usual["holdout"])
    shown = [plate for plate in (*holdout.plates, *screen.plates) if plate.experiment in NEW]
    plates = screen.model_copy(
        update={
            "folds": {},
            "warnings": ("HUVEC-05 plate 2: no negative control",),
            "plates": tuple(map(_without_labels, shown)),
        }
    )
    bare = tuple(plate.model_copy(update={"wells": ()}) for plate in screen.plates)
    reference = screen.model_copy(update={"folds": {}, "warnings": (), "model": MODEL, "plates": bare})
    uris = []
    for experiment, role in NEW.items():
        out = folder / f"assign-{experiment.split('-')[0]}"
        shutil.copytree(run.folder / out.name, out)
        predicted = (out / f"{role}.csv").read_text()
        header = predicted.splitlines(keepends=True)[0]
        for name, content in (("oof", header), ("unlabelled", header), ("holdout", predicted)):
            (out / f"{name}.csv").write_text(content)
        uris.append(str(out))
    arguments = {
        "config": usual["config"],
        "screen": folder / "reference.json",
        "holdout": folder / "plates.json",
        "holdout_labels": None,
        "truth": None,
        "uris": uris,
        "out": folder / "out",
        "lineage": {"code_version": "0.1.0", "model": {"name": "lab", "run": "lab-1", "generation": 3}},
        "store": copy.deepcopy(run.store),
    }
    labels = {id_code: run.labels[id_code] for plate in shown for id_code in treated(plate)}
    made = NewPlates(arguments, plates, reference, labels, arguments["store"])
    made.write()
    return made


def _without_labels(plate: PlateRecord) -> PlateRecord:
    return plate.model_copy(update={"wells": tuple(well.model_copy(update={"sirna": None}) for well in plate.wells)})
