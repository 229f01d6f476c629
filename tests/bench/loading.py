"""CPU time of the host per site, and the highest feed rate: this project's loader beside a PNG Dataset.

512-pixel sites, packed by default settings; files are in the page cache, the object store is SeaweedFS on loopback. CPU time
is that of the client process with all its threads.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from components.core.config import (
    AugmentConfig,
    FoldsConfig,
    LoaderConfig,
    PackConfig,
    RunConfig,
    ScreenConfig,
    StandardiseConfig,
)
from components.core.learning.augmentation import normal_view
from components.core.learning.images import Images, open_images
from components.core.processes import cores
from components.core.storage.manifest import Manifest
from components.core.storage.object_store import ObjectStore
from components.normalize.step import run as normalize
from tests.bench.baseline import PngSites, endless
from tests.bench.measure import Row, Timing, interleaved
from tests.bench.sites import SIZE, TIFF_SIZE, origin, tiff_sites, write_screen
from tests.seaweedfs import BUCKET, s3_server

PLATES, WELLS = 2, 24
BATCH = 16
REPEATS = 7
CPU = torch.device("cpu")
AUGMENT = AugmentConfig()
STANDARDISE = StandardiseConfig(domain="global", jitter=0.1)

WAIT = 0.03
"""Largest share of its time that a consumer may wait."""
SEARCHES = 2
TRIAL_S = 1.0
STEPS = 4
"""Bisections of a rate and its double, which end within 4.4 %."""


@dataclass(frozen=True)
class Sources:
    """The same sites as PNGs in a folder, and packed in a folder, in an object store and in a node's cache."""

    png: PngSites
    folder: Images
    node: Images
    s3: Images
    first_folder: Callable[[], Images]

    @property
    def sites(self) -> int:
        """Number of sites."""
        return self.folder.table.sites


def rows() -> list[Row]:
    """CPU time of the host's work with and without a GPU, then rates."""
    cv2.setNumThreads(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _sources() as sources:
            found = [*_costs(sources), *_rates(sources)]
        return [*found, _sixteen_bits()]
    finally:
        torch.set_num_threads(threads)


def _costs(sources: Sources) -> list[Row]:
    timed = interleaved(
        {
            "first": lambda: _read(sources.first_folder()),
            "png": lambda: _drain(iter(endless(sources.png, BATCH, 0)), sources.sites),
            "local": lambda: _read(sources.folder),
            "node": lambda: _read(sources.node),
            "s3": lambda: _read(sources.s3),
            "cpu": lambda: _augmented(sources.folder),
        },
        REPEATS,
    )
    ms = {name: timing.cpu / sources.sites * 1e3 for name, timing in timed.items()}
    theirs = _spread(timed["png"], "baseline")
    sources_of = {
        "loader_local": ("local", f"from a folder; hashed, as in a first epoch: {ms['first']:.2f} ms"),
        "loader_node_cache": ("node", "from the node's cache, sites of an object store"),
        "loader_s3": ("s3", "from SeaweedFS on loopback, the client's part"),
    }
    found = []
    for name, (key, origin_of) in sources_of.items():
        note = f"host work if a GPU does the arithmetic: uint8 batches {origin_of}; {_spread(timed[key])}; {theirs}; "
        note += f"{SIZE} px {origin()}"
        found.append(Row(name, ms[key], "CPU ms/site", ms["png"], ms["png"] / ms[key], note))
    rate, rate_png = 1e3 / ms["cpu"], 1e3 / ms["png"]
    note = f"everything on the CPU, to augmented float32 batches; {_spread(timed['cpu'])}; {theirs}"
    return [*found, Row("loader_cpu", rate, "sites/CPU s", rate_png, rate / rate_png, note)]


def _sixteen_bits() -> Row:
    """Host work of a site of 16-bit pixels beside the same site rescaled to 8 bits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_screen(folder / "screen", PLATES, 6, files=tiff_sites())
        works = {}
        for bits in (8, None):
            screen = ScreenConfig(cell_types=("HUVEC",), sites=1)
            config = RunConfig(screen=screen, folds=FoldsConfig(count=2), pack=PackConfig(bits=bits))
            store, out = ObjectStore(folder / f"packed{bits}"), folder / f"{bits}.json"
            normalize(config, source, store, out, folder / "holdout.json", folder / "holdout.csv")
            uncached = RunConfig().model_copy(update={"loader": LoaderConfig(cache_gib=0.0)})
            images = open_images(uncached, Manifest.read(out), store, CPU)
            works[f"{bits or 16} bits"] = partial(_read, images)
        taken = interleaved(works, REPEATS)
    eight, sixteen = (taken[f"{bits} bits"].cpu / (PLATES * 6) * 1e3 for bits in (8, 16))
    note = f"host work of a site of {TIFF_SIZE} px with 16 bits, the baseline with 8: {sixteen / eight:.2f} times, at most 2.2"
    return Row("loader_16_bits", sixteen, "CPU ms/site", eight, eight / sixteen, note)


def _rates(sources: Sources) -> list[Row]:
    """Highest rates at which a consumer waits less than 3 % of its time, searched in turn."""
    with ExitStack() as stack:
        feeds: dict[str, tuple[Iterator[object], float]] = {
            "local": (stack.enter_context(_endless(sources.folder)), 300.0),
            "s3": (stack.enter_context(_endless(sources.s3)), 150.0),
            "png": (iter(endless(sources.png, BATCH, cores())), 25.0),
        }
        found: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(SEARCHES):
            for name, (feed, guess) in feeds.items():
                found[name].append(highest_rate(feed, guess * cores()))
        del feeds
    rate = {name: statistics.median(rates) for name, rates in found.items()}
    between = {name: f"{min(rates):.0f} to {max(rates):.0f}" for name, rates in found.items()}

    def row(name: str) -> Row:
        note = f"waits under {WAIT:.0%}, batches of {BATCH}; {cores()} cores; {between[name]}; "
        note += f"baseline: DataLoader of {cores()} workers, {between['png']}"
        return Row(f"feed_rate, {name}", rate[name], "sites/s", rate["png"], rate[name] / rate["png"], note)

    return [row("local"), row("s3")]


def highest_rate(feed: Iterator[object], guess: float) -> float:
    """The highest rate, sites a second, at which a consumer of batches waits less than WAIT of its time.

    From a guess, halving and doubling find an interval, then bisection.
    """
    low = guess
    while waiting(feed, low) >= WAIT:
        low /= 2
    high = 2 * low
    while low >= guess and waiting(feed, high) < WAIT:
        low, high = high, 2 * high
    for _ in range(STEPS):
        rate = (low * high) ** 0.5
        if waiting(feed, rate) < WAIT:
            low = rate
        else:
            high = rate
    return low


def waiting(feed: Iterator[object], rate: float) -> float:
    """Share of its time that a consumer waits which takes 1/rate seconds a site; batches read ahead before do not count."""
    for _ in range(max(LoaderConfig().batches_ahead, 2 * cores())):  # of a DataLoader's workers each reads two ahead
        next(feed)
    _consume(feed, rate, 2)
    waited, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < TRIAL_S:
        waited += _consume(feed, rate, 1)
    return waited / (time.perf_counter() - begun)


def _consume(feed: Iterator[object], rate: float, batches: int) -> float:
    """Takes batches and works on each, as a GPU does, without the host's cores; returns the seconds waited."""
    waited = 0.0
    for _ in range(batches):
        begun = time.perf_counter()
        next(feed)
        waited += time.perf_counter() - begun
        time.sleep(BATCH / rate)
    return waited


@contextmanager
def _endless(images: Images) -> Iterator[Iterator[torch.Tensor]]:
    """uint8 batches without end, in random order."""

    def orders() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(images.table.sites)
            yield from np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH)

    batches = images.loader.batches(orders())
    try:
        yield batches
    finally:
        batches.close()


def _order(images: Images) -> list[np.ndarray]:
    """Every site once."""
    order = np.random.default_rng(0).permutation(images.table.sites)
    return np.array_split(order, -(-len(order) // BATCH))


def _read(images: Images) -> None:
    """The host's part if a GPU does the rest."""
    for _ in images.loader.batches(_order(images)):
        pass


def _augmented(images: Images) -> None:
    generator = torch.Generator().manual_seed(0)
    for _, x in images.batches(_order(images), [generator]):
        normal_view(x, AUGMENT, generator)


def _drain(batches: Iterator[torch.Tensor], sites: int) -> None:
    while sites > 0:
        sites -= len(next(batches))


def _spread(timing: Timing, what: str = "") -> str:
    return f"{what} ± {timing.cpu_spread:.0%}".strip()


@contextmanager
def _sources() -> Iterator[Sources]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_screen(folder / "screen", PLATES, WELLS)
        packed = ObjectStore(folder / "packed")
        screen = ScreenConfig(cell_types=("HUVEC",), image_size=SIZE, sites=1)
        config = RunConfig(screen=screen, folds=FoldsConfig(count=2))
        normalize(config, source, packed, folder / "screen.json", folder / "holdout.json", folder / "holdout.csv")
        manifest = Manifest.read(folder / "screen.json")

        def images(store: ObjectStore, **loader: object) -> Images:
            # Without memory of decoded sites, which would hold all of so small a screen.
            sections = {"standardise": STANDARDISE, "augment": AUGMENT, "loader": LoaderConfig(cache_gib=0.0, **loader)}
            return open_images(RunConfig().model_copy(update=sections), manifest, store, CPU)

        pngs = sorted(source.rglob("*.png"))
        histograms = np.sum([plate.histograms for plate in manifest.plates], axis=0)
        share_CG = histograms / histograms.sum(1, keepdims=True)
        mean_C = (share_CG * np.arange(256)).sum(1)
        std_C = np.sqrt((share_CG * (np.arange(256) - mean_C[:, None]) ** 2).sum(1))
        sites = [tuple(pngs[k : k + 6]) for k in range(0, len(pngs), 6)]
        png = PngSites(sites, mean_C.astype(np.float32), std_C.astype(np.float32), STANDARDISE.jitter, AUGMENT)
        with s3_server(folder / "objects") as server:
            os.environ.update(server.environment())
            store = ObjectStore(f"s3://{BUCKET}")
            store.put_many((key, packed.get(key)) for key in packed.list())
            node = images(store, node_cache=str(folder / "node"))
            yield Sources(png, images(packed), node, images(store), lambda: images(packed))
