"""python -m tests.bench.one_training epoch|scale [SIZE]: one measurement of training; prints JSON."""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from components.core.config import ComputeConfig, LoaderConfig, PackConfig, PretrainConfig, RunConfig
from components.core.learning.augmentation import normal_view
from components.core.learning.images import Images, open_images
from components.core.learning.network import Classifier, prepare
from components.core.learning.supervised import SupervisedTraining
from components.core.screen.ome_zarr import encode_chunk
from components.core.storage.manifest import Manifest, PlateRecord, SiteRecord, Vocabulary, WellRecord
from components.core.storage.object_store import ObjectStore
from tests.components.core.learning.tiny_networks import data_of

WELLS = 60
REPEATS = 5
CPU = torch.device("cpu")
CHANNELS = 6


def packed(
    folder: Path, config: RunConfig, plates: int, chunks: Iterator[bytes] | None = None, wells_of_plate: int = WELLS
) -> tuple[ObjectStore, Manifest]:
    """A packed screen in a folder: treatment wells, a site each.

    Args:
        folder: where.
        config: image size.
        plates: plates.
        chunks: packed sites, as many as there are wells; None for noise.
        wells_of_plate: wells of a plate, at most 308.
    """
    store, size = ObjectStore(folder), config.screen.image_size
    chunks = _noise(size) if chunks is None else chunks
    records = []
    for p in range(plates):
        wells = []
        for w in range(wells_of_plate):
            chunk = next(chunks)
            key = f"{w}"
            store.put(f"plates/{p}/{key}", chunk)
            site = SiteRecord(site=1, key=key, size=len(chunk), sha256=hashlib.sha256(chunk).hexdigest())
            well = f"{'BCDEFGHIJKLMNO'[w // 22]}{w % 22 + 2:02d}"
            wells.append(
                WellRecord(
                    id_code=f"HUVEC-{p}_1_{well}", well=well, well_type="treatment", sirna=f"s{w}", sites=(site,)
                )
            )
        histogram = tuple(tuple([1] * 60 + [0] * 196) for _ in range(CHANNELS))
        records.append(
            PlateRecord(
                experiment=f"HUVEC-{p}",
                plate=1,
                cell_type="HUVEC",
                labelled=True,
                prefix=f"plates/{p}",
                histograms=histogram,
                wells=tuple(wells),
            )
        )
    vocabulary = Vocabulary(treatments=tuple(f"s{w}" for w in range(wells_of_plate)), positives=(), negatives=())
    manifest = Manifest(
        store="s3://memory", channels=CHANNELS, image_size=size, codec=PackConfig(), vocabulary=vocabulary, folds={},
        plates=tuple(records),
    )  # fmt: skip
    return store, manifest


def _noise(size: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    while True:
        yield encode_chunk(rng.integers(0, 60, (CHANNELS, size, size), dtype=np.uint8), PackConfig())


def opened(folder: Path, config: RunConfig, plates: int, cache_gib: float) -> tuple[Images, Classifier]:
    """Images of such a screen, and the configuration's first network."""
    store, manifest = packed(folder, config, plates)
    limited = config.model_copy(update={"loader": LoaderConfig(cache_gib=cache_gib)})
    images = open_images(limited, manifest, store, CPU)
    torch.manual_seed(0)
    network = Classifier(config.backbones[0], config.head, WELLS, CHANNELS, config.screen.image_size)
    return images, network


def epochs(images: Images, network: Classifier, config: RunConfig, count: int) -> list[dict[str, float]]:
    """Records of epochs as pretrain runs them, without validation."""
    pretrain = PretrainConfig(
        epochs=count, batch_size=config.pretrain.batch_size, learning_rates=(1e-3,), milestones=(), selection="last"
    )
    data = data_of(images, np.arange(images.table.wells))
    training = SupervisedTraining(network, data, pretrain, 1, ComputeConfig())
    training.run()
    return training.history


def epoch(folder: Path) -> dict[str, object]:
    """An epoch from packed sites, and the same steps on ready tensors, in turn; sites a second.

    The memory of decoded sites is off: every site is fetched and decoded in every epoch.
    """
    config = RunConfig.load("demo")
    images, network = opened(folder, config, 8, cache_gib=0)
    prepare(network, config.compute, CPU)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    size = config.pretrain.batch_size
    generator = torch.Generator().manual_seed(1)
    ((_, x),) = images.batches([np.arange(size)])
    x = normal_view(x, images.augment, generator)
    target = torch.arange(size) % WELLS

    def ready() -> float:
        network.train()
        steps = images.table.wells // size
        begun = time.perf_counter()
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(network(x, target), target).backward()
            optimiser.step()
        return steps * size / (time.perf_counter() - begun)

    found: dict[str, list[float]] = {"ready": [], "epoch": []}
    waits = []
    for round_ in range(REPEATS + 1):
        rate = ready()
        (record,) = epochs(images, network, config, 1)
        if round_:
            found["ready"].append(rate)
            found["epoch"].append(record["sites_per_s"])
            waits.append(record["data_wait"])
    return {**found, "wait": statistics.median(waits)}


def scale(folder: Path, size: int) -> dict[str, float]:
    """CPU-seconds of an epoch of a screen of `size` times 8 plates, and the process's peak of memory."""
    config = RunConfig.load("demo")
    images, network = opened(folder, config, 8 * size, cache_gib=0)
    epochs(images, network, config, 1)
    taken = []
    for _ in range(2):
        begun = time.process_time()
        epochs(images, network, config, 1)
        taken.append(time.process_time() - begun)
    # Other programs only ever add: the least of them is what the epoch takes.
    return {"cpu": min(taken), "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as place:
        here = Path(place)
        print(json.dumps(epoch(here) if sys.argv[1] == "epoch" else scale(here, int(sys.argv[2]))))  # noqa: T201
