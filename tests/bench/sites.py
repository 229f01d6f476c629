"""Inputs of the measurements: PNGs of 512-pixel sites, the real RxRx1 ones if they lie beside the repository, else simulated.

Also a screen of any size that repeats them, and interleaved repeats, so that a busy minute affects all measurements alike.
"""

from __future__ import annotations

import functools
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from components.core.config import ScreenConfig
from components.core.screen.simulation.plate_design import SimulationSettings, design_screen
from components.core.screen.simulation.rendering import render_site
from tests.bench.row import report

SIZE = 512
RXRX1 = Path(__file__).resolve().parents[3] / "shared" / "rxrx1" / "images"
_SIMULATED = 18
_WELLS = [f"{row}{column:02d}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]
"""The wells of a 384-well plate without its edge, as RxRx1 uses them."""


@functools.cache
def png_sites() -> tuple[tuple[bytes, ...], ...]:
    """The PNG files of each site, in channel order."""
    folders = sorted(RXRX1.glob("*/*/*"))
    if folders:
        return tuple(tuple((f / f"B02_s1_w{c}.png").read_bytes() for c in range(1, 7)) for f in folders)
    settings = SimulationSettings(screen=ScreenConfig(image_size=SIZE))
    plates = design_screen(settings)[:_SIMULATED]
    return tuple(
        tuple(cv2.imencode(".png", image)[1].tobytes() for image in render_site(settings, plate, plate.wells[0], 1))
        for plate in plates
    )


def origin() -> str:
    """The origin of the sites, for a note."""
    return "real RxRx1 sites" if RXRX1.is_dir() else "simulated sites"


def write_screen(root: Path, plates: int, wells: int = 16, sites: int = 1) -> Path:
    """A labelled screen in the Kaggle layout that repeats the sites; its plates are of different experiments.

    Args:
        root: folder to make.
        plates: plates, of HUVEC.
        wells: treatment wells of a plate, at most 308.
        sites: sites of a well.
    """
    pngs = png_sites()
    rows = ["id_code,experiment,plate,well,sirna"]
    count = 0
    for p in range(plates):
        experiment = f"HUVEC-{p + 1:02d}"
        folder = root / "train" / experiment / "Plate1"
        folder.mkdir(parents=True)
        for w, well in enumerate(_WELLS[:wells]):
            rows.append(f"{experiment}_1_{well},{experiment},1,{well},sirna_{w}")
            for site in range(1, sites + 1):
                for channel, data in enumerate(pngs[count % len(pngs)], start=1):
                    (folder / f"{well}_s{site}_w{channel}.png").write_bytes(data)
                count += 1
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


def cpu_seconds() -> float:
    """CPU time so far of this process and of all that it started, directly or not; of grandchildren, of those that ended."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ended = sum(each.ru_utime + each.ru_stime for each in used)
    return ended + sum(_ticks(child) for child in children(os.getpid())) / os.sysconf("SC_CLK_TCK")


def children(parent: int) -> list[int]:
    """Process ids of a process's children."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _ticks(process: int) -> int:
    """Clock ticks of a process and of its children that ended."""
    return sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]))


@dataclass(frozen=True)
class Timing:
    """Repeats of one measurement: median and spread of CPU-seconds, worker processes included, and of seconds passed."""

    cpu: float
    cpu_spread: float
    wall: float
    wall_spread: float


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Runs every work once uncounted, then all of them in turn, `repeats` times.

    Returns:
        By name. Spread is half the range between the quartiles, relative to the median.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for round_ in range(repeats + 1):
        report(f"{', '.join(works)}: {f'round {round_} of {repeats}' if round_ else 'warm-up'}")
        for name, work in works.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            work()
            if round_:
                taken[name].append((cpu_seconds() - cpu, time.perf_counter() - wall))
    return {
        name: Timing(*_median_and_spread([c for c, _ in times]), *_median_and_spread([w for _, w in times]))
        for name, times in taken.items()
    }


def _median_and_spread(values: list[float]) -> tuple[float, float]:
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (middle, middle, middle)
    return middle, (high - low) / 2 / middle if middle else 0.0


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Log-log slope by least squares: 1 where values grow in line with sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
