"""Packing a screen: rate against decoding its PNGs and nothing else, memory, growth with the screen, and codecs.

Everything goes through normalize's own code. The baseline is a bound that no packing can beat: cores x the rate at which one
thread decodes the PNGs from memory. Both are timed in turn; on a machine with other work the ratio of CPU-seconds, in the note,
is the better one. Growth is measured in child processes, one a size: CPU time and peak memory, workers included.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tifffile

from components.core.config import FoldsConfig, PackConfig, RunConfig, ScreenConfig
from components.core.processes import cores
from components.core.screen.ome_zarr import decode_chunk, encode_chunk
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import open_screen
from components.normalize.step import run
from tests.bench.measure import Row, children, cpu_seconds, in_child, interleaved, report, slope
from tests.bench.sites import SIZE, TIFF_SIZE, origin, pixel_sites, png_sites, tiff_sites, write_screen
from tests.seaweedfs import BUCKET, s3_server

SITES = 2
"""Sites of a well, as RxRx1 has; OME-Zarr's metadata of a well is then written once for two sites."""
CONFIG = RunConfig(screen=ScreenConfig(cell_types=("HUVEC",), sites=SITES), folds=FoldsConfig(count=2))
WELLS, PLATES, REPEATS = 24, 6, 5
TIFF_WELLS, TIFF_PLATES, DECODED = 24, 2, 4
TIFF_COMPRESSIONS = {"lzw": None, "deflate": "zlib", "uncompressed": "none"}
"""As tifffile names them; the real files are LZW."""
SIZES, ROUNDS = (1, 2, 4, 8), 2
PLATES_OF_ONE, GROWN_WELLS = 4, 96
"""Plates of the smallest screen of SIZES, and wells of each: more than packing handles at a time."""
LEVELS: dict[Literal["lz4", "zstd"], tuple[int, ...]] = {"lz4": (1, 5, 9), "zstd": (1, 3, 5)}
FILTERS: tuple[Literal["noshuffle", "bitshuffle"], ...] = ("bitshuffle", "noshuffle")
"""Blosc's filter `shuffle` is left out: it reorders the bytes of a value, and these values have one."""
CODEC_REPEATS = 3


def decode_all() -> None:
    """Decodes the PNGs of every known site, from memory, in this thread, with OpenCV, as most projects do."""
    for site in png_sites():
        for data in site:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def pack(source: str, store: str, out: Path) -> int:
    """Packs a screen from one address to another; returns the objects written."""
    outputs = (out / name for name in ("screen.json", "holdout.json", "labels.csv"))
    return run(CONFIG, open_screen(source), ObjectStore(store), *outputs).written


def rows() -> list[Row]:
    """Disk to disk, bucket to bucket, growth, and codecs."""
    with tempfile.TemporaryDirectory(prefix="cellsignal-bench-") as folder:
        # Children count as large as their parent was when they began, so the row of memory goes before that of large images.
        return [*_speed(Path(folder)), *_growth(Path(folder)), *_tiff_speed(Path(folder)), *codec_rows()]


def _speed(folder: Path) -> list[Row]:
    source, sites = write_screen(folder / "screen", PLATES, WELLS, SITES), PLATES * WELLS * SITES
    numbers = itertools.count()
    requests: list[int] = []

    def to_disk() -> None:
        requests.append(pack(str(source), (folder / f"packed-{next(numbers)}").as_uri(), folder / "out"))

    with _bucket(folder, source) as address:

        def to_bucket() -> None:
            pack(f"{address}/screen", f"{address}/packed-{next(numbers)}", folder / "out")

        taken = interleaved({"decode": decode_all, "disk": to_disk, "bucket": to_bucket}, REPEATS)
    decode, disk, bucket = taken["decode"], taken["disk"], taken["bucket"]
    best = cores() * len(png_sites()) / decode.wall
    by_cpu = (sites / disk.cpu) / (len(png_sites()) / decode.cpu)
    spread = f"spread {100 * disk.wall_spread:.0f} %, of decoding {100 * decode.wall_spread:.0f} %"
    note = f"disk to disk, {sites} {origin()}; by CPU-seconds {by_cpu:.2f}; "
    note += f"{requests[0] / sites:.2f} writes a site; {spread}"
    busy = f"load {os.getloadavg()[0]:.1f} on {cores()} cores"
    return [
        Row("packing_vs_decode", sites / disk.wall, "sites/s", best, sites / disk.wall / best, f"{note}; {busy}"),
        Row("packing_s3", sites / bucket.wall, "sites/s", best, sites / bucket.wall / best,
            f"bucket to bucket, SeaweedFS on the same cores; packing {1e3 * bucket.cpu / sites:.1f} CPU-ms a site "
            f"({1e3 * disk.cpu / sites:.1f} from disk); 6 reads and {requests[0] / sites:.2f} writes a site"),
    ]  # fmt: skip


def _tiff_speed(folder: Path) -> list[Row]:
    """16-bit TIFFs, disk to disk, beside tifffile, which decodes them from memory and does nothing else."""
    sites, found = TIFF_PLATES * TIFF_WELLS, []
    for name, compression in TIFF_COMPRESSIONS.items():
        files = tiff_sites(compression)
        source = write_screen(folder / f"tiff-{name}", TIFF_PLATES, TIFF_WELLS, files=files)
        packed = folder / "tiff-packed"

        def decode(files: tuple[tuple[bytes, ...], ...] = files) -> None:
            for site in files * DECODED:
                for data in site:
                    tifffile.imread(io.BytesIO(data), maxworkers=1)

        def to_disk(source: Path = source, packed: Path = packed) -> None:
            shutil.rmtree(packed, ignore_errors=True)  # a virtual machine's first use of memory is slow
            pack(str(source), packed.as_uri(), folder / "out")

        taken = interleaved({"tifffile": decode, name: to_disk}, REPEATS)
        decoded = DECODED * len(files)
        rate, best = sites / taken[name].wall, cores() * decoded / taken["tifffile"].wall
        by_cpu = (sites / taken[name].cpu) / (decoded / taken["tifffile"].cpu)
        note = f"{sites} sites of six 16-bit TIFFs of {TIFF_SIZE} px, {name}, disk to disk; {1e3 * taken[name].cpu / sites:.0f} "
        note += (
            f"CPU-ms a site, tifffile {1e3 * taken['tifffile'].cpu / decoded:.0f}; by CPU-seconds {by_cpu:.2f}; load "
        )
        note += f"{os.getloadavg()[0]:.1f} on {cores()} cores"
        found.append(Row(f"packing_tiff16_{name}_vs_tifffile", rate, "sites/s", best, rate / best, note))
    return found


@contextmanager
def _bucket(folder: Path, source: Path) -> Iterator[str]:
    """A server with the screen in it, for this process."""
    with s3_server(folder / "server") as server:
        os.environ.update(server.environment())
        files = [path for path in source.rglob("*") if path.is_file()]
        screen = ObjectStore(f"s3://{BUCKET}/screen")
        screen.put_many((path.relative_to(source).as_posix(), path.read_bytes()) for path in files)
        yield f"s3://{BUCKET}"


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
    sites = PLATES_OF_ONE * GROWN_WELLS
    at = ", ".join(f"{size * sites} sites {least[size]:.2f} s" for size in SIZES)
    peaks = ", ".join(f"{size}x {peak[size]:.0f} MB" for size in SIZES)
    return [
        Row("scaling_packing", slope(SIZES, [*least.values()]), "slope of log CPU-seconds", 1.0, None, f"{at}; 1 is linear"),
        Row("packing_memory", peak[4], "MB", peak[1], peak[4] / peak[1],
            f"highest resident memory, all processes, at 4x the screen, beside that at 1x: {peaks}; "
            f"largest over smallest {max(peak.values()) / min(peak.values()):.3f}"),
    ]  # fmt: skip


def measured_child(source: str, folder: Path) -> tuple[float, float]:
    """Packs a screen in a process of its own; returns CPU-seconds in packing and peak memory in MB, its workers' included."""
    folder.mkdir()
    found = in_child("tests.bench.packing", source, (folder / "store").as_uri(), folder)
    return found["cpu"], found["megabytes"]


def _child(source: str, store: str, out: str) -> None:
    config = CONFIG.model_copy(update={"screen": CONFIG.screen.model_copy(update={"sites": 1})})
    outputs = (Path(out) / name for name in ("screen.json", "holdout.json", "labels.csv"))
    kilobytes: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            kilobytes.update(peaks(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = cpu_seconds()
    run(config, open_screen(source), ObjectStore(store), *outputs)
    cpu = cpu_seconds() - begun
    ended.set()
    watcher.join()
    kilobytes.update(peaks(os.getpid()))
    print(json.dumps({"cpu": cpu, "megabytes": sum(kilobytes.values()) / 1024}))  # noqa: T201


def peaks(process: int) -> dict[int, int]:
    """Peak resident memory of a process and its descendants, in kB by process id; shared pages count for each."""
    found = {}
    with suppress(OSError):  # a process may end at any moment
        status = Path(f"/proc/{process}/status").read_text()
        found[process] = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        for child in children(process):
            found |= peaks(child)
    return found


def codec_rows() -> list[Row]:
    """Bytes beside the PNGs' and CPU time of one thread for every setting that PackConfig takes; the shipped one is marked."""
    pngs = png_sites()
    png_bytes = sum(len(data) for site in pngs for data in site)
    sites = pixel_sites()
    settings = [
        PackConfig(codec=codec, level=level, shuffle=shuffle)
        for shuffle in FILTERS
        for codec, levels in LEVELS.items()
        for level in levels
    ]
    out_CSS = np.empty((6, SIZE, SIZE), np.uint8)
    found = []
    for pack in settings:
        report(f"codec {pack.codec} {pack.level} {pack.shuffle}")
        chunks = [encode_chunk(pixels_CSS, pack) for pixels_CSS in sites]
        encode = _milliseconds(lambda n, pack=pack: encode_chunk(sites[n], pack), len(sites))
        decode = _milliseconds(lambda n, chunks=chunks: decode_chunk(chunks[n], out_CSS), len(sites))
        shipped = "; shipped" if pack == PackConfig() else ""
        size = sum(map(len, chunks)) / png_bytes
        name = f"codec {pack.codec} {pack.level} {pack.shuffle}"
        note = f"{encode:.2f} ms to pack a site, {decode:.2f} ms to read it; {origin()}{shipped}"
        found.append(Row(name, size, "x PNG bytes", 1.0, 1 / size, note))
    return found


def _milliseconds(work: Callable[[int], object], sites: int) -> float:
    """Median over repeats of the mean CPU time of a site."""
    taken = []
    for _ in range(CODEC_REPEATS):
        begun = time.thread_time()
        for n in range(sites):
            work(n)
        taken.append((time.thread_time() - begun) / sites * 1e3)
    return statistics.median(taken)


if __name__ == "__main__":
    _child(*sys.argv[1:])
