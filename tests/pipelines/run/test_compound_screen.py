"""A whole run on what other laboratories have: 5 channels, 16 bit, not square, compounds in replicates without a plate design."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.core.config import RunConfig
from components.core.screen.ome_zarr import decode_chunk
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from tests.pipelines.tiny_run import CONFIG, Cellsignal

SCREEN = """screen:
  cell_types: [U2OS]
  channels: [DNA, ER, AGP, Mito, RNA]
  image_size: [40, 56]
  perturbation_name: compound"""
SIMULATE = """simulate:
  layout: opera_phenix
  bits: 16
  labelled: {U2OS: 2}
  unlabelled: {U2OS: 1}
  positive_controls: 1
  compounds: {count: 4, replicates: 3, doses: [10, 1, 0.1], plates: 2, negative_wells: 4, positive_wells: 2}"""


def config_text() -> str:
    changed = {"name": "name: compounds", "screen": SCREEN, "simulate": SIMULATE}
    lines = CONFIG.strip().splitlines()
    return "\n".join(changed.get(line.partition(":")[0], line) for line in lines) + "\n"


@pytest.mark.slow
def test_a_compound_screen_without_a_plate_design_from_its_files_to_the_report(tmp_path: Path) -> None:
    cellsignal, file = Cellsignal(tmp_path), tmp_path / "compounds.yaml"
    file.write_text(config_text())
    settings = RunConfig.load(str(file)).section(SimulationSettings)
    assert cellsignal("simulate", "--config", file, "--out", "simulated").returncode == 0
    truth = pd.read_csv(tmp_path / "simulated" / "truth.csv", index_col="id_code")

    places = ["--screen", "simulated/screen", "--truth", "simulated/truth.csv", "--out", "out", "--store", "store"]
    done = cellsignal("run", "--config", file, *places)
    assert done.returncode == 0, done.stderr
    out, designed = tmp_path / "out", design_screen(settings)

    predicted = pd.read_csv(out / "predictions.csv", index_col="id_code")
    assert list(predicted.columns[-2:]) == ["dose", "replicate"]
    assert set(predicted.index) == set(truth.index)
    treated = [well for plate in designed if not plate.labelled for well in plate.wells if well.role == "treatment"]
    labels = {well.label for well in treated}
    assert set(truth["compound"]) == labels
    assert set(predicted["compound"]) <= labels
    doses = {f"{plate.experiment}_{plate.plate}_{w.well}": w.dose for plate in designed for w in plate.wells}
    assert predicted["dose"].to_dict() == {id_code: doses[id_code] for id_code in predicted.index}

    # Compounds are on a plate several times: no plate group and no assignment can be meant, and the page mentions none.
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["wells"]["unlabelled"]["overall"] == len(treated)
    assert metrics["unlabelled"]["raw"] == metrics["unlabelled"]["group"] == metrics["unlabelled"]["assigned"]
    page = (out / "report.html").read_text().lower()
    assert "compound" in page
    assert "sirna" not in page
    assert "plate group" not in page

    # What is packed are the pixels of the files.
    store = ObjectStore((tmp_path / "store").as_uri())
    (key,) = [key for key in store.list("runs/") if key.endswith("/screen.json")]
    manifest = Manifest.parse(store.get(key), key)
    assert (manifest.channels, manifest.image_shape, manifest.dtype) == (settings.screen.channels, (40, 56), "uint16")
    plate, record = designed[0], next(p for p in manifest.plates if p.plate == designed[0].plate)
    for well, packed in zip(plate.wells[:4], record.wells, strict=False):
        for site in packed.sites:
            pixels = np.empty((5, 40, 56), np.uint16)
            decode_chunk(store.get(f"{record.prefix}/{site.key}"), pixels)
            np.testing.assert_array_equal(pixels, render_site(settings, plate, well, site.site))
