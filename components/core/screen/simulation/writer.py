"""Writes a simulated screen, complete or not at all.

out/screen           tables and images in the chosen layout
out/truth.csv        labels of the unlabelled treatments
out/simulation.json  settings and code version
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any

import cv2
import pandas as pd

from components.core.errors import InputError
from components.core.files import atomic_directory
from components.core.processes import cores, worker_processes
from components.core.screen.simulation.cells import CELL_TYPES, TRAITS
from components.core.screen.simulation.layouts import COLUMNS, LAYOUTS, SitePlace, id_codes
from components.core.screen.simulation.plate_design import (
    SimulatedPlate,
    SimulatedWell,
    SimulationSettings,
    design_screen,
)
from components.core.screen.simulation.real_cells import photographs_digest, source_sites
from components.core.screen.simulation.rendering import render_site
from components.core.tables import write_table

cv2.setNumThreads(0)  # processes run over sites; threads of OpenCV would only compete with them

Progress = Callable[[int, int], None]

_TASK_SITES = 16
"""Sites of a task: a cancelled simulation waits for no more than one task a worker."""
_PROCESS_SITES = 300
"""Below this many sites the start of worker processes (about a second) costs more than they save."""


def simulate(settings: SimulationSettings, out: Path, progress: Progress | None = None) -> bool:
    """Writes the screen, the truth and simulation.json into a folder that appears when complete; False if it holds them already.

    The pixels depend on the settings alone, not on the number of processes, one a core. `progress` is called with the number of
    sites written and their total. InputError for an unknown cell type, or if `out` holds something else.
    """
    for cell_type in (*settings.simulate.labelled, *settings.simulate.unlabelled):
        if cell_type not in CELL_TYPES:
            raise InputError(
                f"simulate.labelled / simulate.unlabelled: no simulated morphology for cell type {cell_type!r}; "
                f"choose among {', '.join(CELL_TYPES)}"
            )
    if unknown := set(settings.simulate.traits) - set(TRAITS):
        raise InputError(f"simulate.traits: unknown {', '.join(sorted(unknown))}; known are {', '.join(TRAITS)}")
    if photographs := settings.simulate.photographs:
        found = source_sites(photographs, len(settings.images.channels), settings.simulate.cell_diameter)
        wanted = {*settings.simulate.labelled, *settings.simulate.unlabelled}
        if missing := wanted - set(found):
            raise InputError(f"simulate.photographs: {photographs}: no site of {', '.join(sorted(missing))}")
    record = _record(settings)
    if out.exists() and _holds(out, record):
        return False
    with atomic_directory(out) as new:
        plates = design_screen(settings)
        _write_images(settings, plates, new / "screen", progress or (lambda done, total: None))
        table = site_table(plates)
        LAYOUTS[settings.simulate.layout].tables(new / "screen", table, settings.images)
        hidden = table.drop_duplicates(["experiment", "plate", "well"]).query("role == 'treatment' and not labelled")
        truth = {"id_code": id_codes(hidden), settings.screen.label_column: hidden["perturbation"]}
        write_table(new / "truth.csv", pd.DataFrame(truth))
        (new / "simulation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return True


def code_version() -> str:
    """Digest of the simulator's source files: another version may render other pixels from the same settings."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _record(settings: SimulationSettings) -> dict[str, Any]:
    """Everything the files depend on; the other fields of ScreenConfig concern later steps."""
    images, photographs = settings.images, settings.simulate.photographs
    return {
        "code": code_version(),
        "seed": settings.seed,
        "channels": list(images.channels),
        "image_size": list(images.shape),
        "sites": settings.screen.usual_sites,
        "label_column": settings.screen.label_column,
        "simulate": settings.simulate.model_dump(mode="json", exclude={"photographs"}),
        "photographs": photographs_digest(photographs) if photographs else None,
    }


def _holds(out: Path, record: dict[str, Any]) -> bool:
    """Whether `out` is this very screen; an empty folder is not.

    Raises:
        InputError: `out` is something else.
    """
    if out.is_dir() and not any(out.iterdir()):
        return False
    advice = "choose another folder or delete this one"
    try:
        found = json.loads((out / "simulation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{out}: exists and is not a simulated screen; {advice}") from None
    if found == record:
        return True
    known = found if isinstance(found, dict) else {}
    different = ", ".join(key for key in record if known.get(key) != record[key]) or "simulation.json"
    raise InputError(f"{out}: holds a screen simulated with other settings ({different}); {advice}")


def _write_images(
    settings: SimulationSettings, plates: Sequence[SimulatedPlate], screen: Path, progress: Progress
) -> None:
    tasks: list[tuple[SimulatedPlate, tuple[SimulatedWell, ...]]] = []
    step = max(1, _TASK_SITES // settings.screen.usual_sites)
    for plate in plates:
        tasks += [(plate, plate.wells[start : start + step]) for start in range(0, len(plate.wells), step)]
    total = sum(len(well.sites) for plate in plates for well in plate.wells)
    done = 0
    if cores() == 1 or total < _PROCESS_SITES:
        for plate, wells in tasks:
            done += write_wells(settings, plate, wells, screen)
            progress(done, total)
        return
    with worker_processes(cores(), [__name__]) as pool:
        pending = {pool.submit(write_wells, settings, plate, wells, screen) for plate, wells in tasks}
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                done += sum(future.result() for future in finished)
                progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def write_wells(
    settings: SimulationSettings, plate: SimulatedPlate, wells: Sequence[SimulatedWell], screen: Path
) -> int:
    """Renders and writes the images of some wells; returns the number of sites."""
    layout, sites = LAYOUTS[settings.simulate.layout], 0
    for well in wells:
        for site in well.sites:
            place = SitePlace(plate.experiment, plate.plate, well.well, site, plate.labelled)
            layout.write_site(screen, place, settings.images.channels, render_site(settings, plate, well, site))
            sites += 1
    return sites


def site_table(plates: Sequence[SimulatedPlate]) -> pd.DataFrame:
    """The sites of some plates, as layouts.py describes the table; compounds have columns dose and replicate."""
    rows = [
        (p.experiment, p.plate, w.well, site, w.role, w.label, p.cell_type, p.labelled, w.dose, w.replicate)
        for p in plates
        for w in p.wells
        for site in w.sites
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, "dose", "replicate"])
    if table["replicate"].isna().all():
        return table[list(COLUMNS)]
    dose, replicate = table["dose"], table["replicate"]
    return table.assign(dose=dose.map("{:g}".format).where(dose.notna(), ""), replicate=replicate.map("{:g}".format))
