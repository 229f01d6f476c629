"""Packing a screen: sites a second against decoding its PNGs and nothing else, memory, and how both grow with the screen.

Everything goes through normalize's own code. The baseline is what no packing can beat: cores x the rate at which one thread
decodes the PNGs from memory. Both are timed in turn; on a machine with other work the ratio of CPU-seconds is the better
one, and is in the note. Sizes are measured in child processes, one a size, by CPU time and highest memory of them and of the
processes that they pack with.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from components.core.config import FoldsConfig, ScreenConfig
from components.core.processes import cores
from components.core.screen.png import decode_png
from components.core.storage.opening import open_screen, open_store
from components.normalize.config import NormalizeConfig
from components.normalize.step import run
from tests.bench.row import Row
from tests.bench.sites import SIZE, children, cpu_seconds, interleaved, origin, png_sites, write_screen
from tests.seaweedfs import BUCKET, s3_server

SITES = 2
"""Sites of a well, as RxRx1 has; OME-Zarr's metadata of a well is then written once for two sites."""
CONFIG = NormalizeConfig(screen=ScreenConfig(cell_types=("HUVEC",), sites=SITES), folds=FoldsConfig(count=2))
WELLS, PLATES, REPEATS = 24, 6, 5
SIZES, ROUNDS = (1, 2, 4, 8), 2
PLATES_OF_ONE, GROWN_WELLS = 4, 96
"""Plates of the smallest screen of SIZES, and wells of each: more than packing has under way, and enough for processes."""
ROOT = Path(__file__).resolve().parents[2]


def decode_all() -> None:
    """Decodes the PNGs of every known site, from memory, in this thread, with OpenCV, as most projects do."""
    for site in png_sites():
        for data in site:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def decode_all_as_packing_does() -> None:
    """The same with the decoder that packing calls."""
    pixels_SS = np.empty((SIZE, SIZE), np.uint8)
    for site in png_sites():
        for data in site:
            decode_png(data, pixels_SS)


def pack(source: str, store: str, out: Path) -> int:
    """Packs a screen from one address to another; returns the objects written."""
    outputs = (out / name for name in ("screen.json", "holdout.json", "labels.csv"))
    return run(CONFIG, open_screen(source), open_store(store), *outputs).written


def rows() -> list[Row]:
    """Disk to disk, bucket to bucket, and growth."""
    with tempfile.TemporaryDirectory(prefix="cellsignal-bench-") as folder:
        return [*_speed(Path(folder)), *_growth(Path(folder))]


def _speed(folder: Path) -> list[Row]:
    source, sites = write_screen(folder / "screen", PLATES, WELLS, SITES), PLATES * WELLS * SITES
    made = iter(range(10**6))
    requests: list[int] = []

    def to_disk() -> None:
        requests.append(pack(str(source), (folder / f"packed-{next(made)}").as_uri(), folder / "out"))

    with _bucket(folder, source) as address:

        def to_bucket() -> None:
            pack(f"{address}/screen", f"{address}/packed-{next(made)}", folder / "out")

        taken = interleaved(
            {"decode": decode_all, "own": decode_all_as_packing_does, "disk": to_disk, "bucket": to_bucket}, REPEATS
        )
    decode, disk, bucket = taken["decode"], taken["disk"], taken["bucket"]
    best = cores() * len(png_sites()) / decode.wall
    by_cpu = (sites / disk.cpu) / (len(png_sites()) / decode.cpu)
    spread = f"spread {100 * disk.wall_spread:.0f} %, of decoding {100 * decode.wall_spread:.0f} %"
    own = cores() * len(png_sites()) / taken["own"].wall
    note = f"disk to disk, {sites} {origin()}; by CPU-seconds {by_cpu:.2f}; "
    note += f"{sites / disk.wall / own:.2f} of what its own decoder could; {requests[0] / sites:.2f} writes a site; {spread}"
    busy = f"load {os.getloadavg()[0]:.1f} on {cores()} cores"
    return [
        Row("packing_vs_decode", sites / disk.wall, "sites/s", best, sites / disk.wall / best, f"{note}; {busy}"),
        Row("packing_s3", sites / bucket.wall, "sites/s", best, sites / bucket.wall / best,
            f"bucket to bucket, SeaweedFS on the same cores; packing {1e3 * bucket.cpu / sites:.1f} CPU-ms a site "
            f"({1e3 * disk.cpu / sites:.1f} from disk); 6 reads and {requests[0] / sites:.2f} writes a site"),
    ]  # fmt: skip


@contextmanager
def _bucket(folder: Path, source: Path) -> Iterator[str]:
    """A server with the screen in it, for this process."""
    before = dict(os.environ)
    with s3_server(folder / "server") as server:
        os.environ.update(server.environment())
        try:
            files = [path for path in source.rglob("*") if path.is_file()]
            open_store(f"s3://{BUCKET}/screen").put_many(
                (p.relative_to(source).as_posix(), p.read_bytes()) for p in files
            )
            yield f"s3://{BUCKET}"
        finally:
            os.environ.clear()
            os.environ.update(before)


def _growth(folder: Path) -> list[Row]:
    screens = {size: write_screen(folder / f"x{size}", size * PLATES_OF_ONE, GROWN_WELLS) for size in SIZES}
    cpu: dict[int, list[float]] = {size: [] for size in SIZES}
    memory: dict[int, list[float]] = {size: [] for size in SIZES}
    for round_ in range(ROUNDS):
        for size, source in screens.items():
            out = folder / f"grown-{size}-{round_}"
            seconds, megabytes = measured_child(str(source), out)
            shutil.rmtree(out)
            cpu[size].append(seconds)
            memory[size].append(megabytes)
    least = {size: min(values) for size, values in cpu.items()}  # other programs only ever add
    peak = {size: max(values) for size, values in memory.items()}
    slope = float(np.polyfit([math.log(size) for size in SIZES], [math.log(least[size]) for size in SIZES], 1)[0])
    sites = PLATES_OF_ONE * GROWN_WELLS
    at = ", ".join(f"{size * sites} sites {least[size]:.2f} s" for size in SIZES)
    peaks = ", ".join(f"{size}x {peak[size]:.0f} MB" for size in SIZES)
    return [
        Row("scaling_packing", slope, "slope of log CPU-seconds", 1.0, None, f"{at}; 1 is linear"),
        Row("packing_memory", peak[4], "MB", peak[1], peak[4] / peak[1],
            f"highest resident memory, all processes, at 4x the screen, beside that at 1x: {peaks}; "
            f"largest over smallest {max(peak.values()) / min(peak.values()):.3f}"),
    ]  # fmt: skip


def measured_child(source: str, folder: Path, wells_sites: int = 1) -> tuple[float, float]:
    """Packs a screen in a process of its own; returns CPU-seconds in packing and highest memory in MB, its workers' included."""
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.bench.packing",
        source,
        (folder / "store").as_uri(),
        str(folder),
        str(wells_sites),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["cpu"], answer["megabytes"]


def _child(source: str, store: str, out: str, sites: str) -> None:
    screen = CONFIG.screen.model_copy(update={"sites": int(sites)})
    config = CONFIG.model_copy(update={"screen": screen})
    outputs = (Path(out) / name for name in ("screen.json", "holdout.json", "labels.csv"))
    kilobytes: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            kilobytes.update(peaks(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = cpu_seconds()
    run(config, open_screen(source), open_store(store), *outputs)
    cpu = cpu_seconds() - begun
    ended.set()
    watcher.join()
    kilobytes.update(peaks(os.getpid()))
    print(json.dumps({"cpu": cpu, "megabytes": sum(kilobytes.values()) / 1024}))  # noqa: T201


def peaks(process: int) -> dict[int, int]:
    """Highest resident memory of a process and of all below it, in kB by process id; what they share counts for each."""
    found = {}
    with suppress(OSError):  # a process may end at any moment
        status = Path(f"/proc/{process}/status").read_text()
        found[process] = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        for child in children(process):
            found |= peaks(child)
    return found


if __name__ == "__main__":
    _child(*sys.argv[1:])
