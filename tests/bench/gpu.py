"""A GPU with RxRx1's networks and image size: training from packed sites beside training on tensors in GPU memory.

`python -m tests.bench.gpu rates KIND` writes the rates of this GPU into pipelines/plan/rates.yaml instead, from which
`cellsignal plan` takes them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch.nn import functional as F

from components.core import progress
from components.core.config import BackboneConfig, ComputeConfig, LoaderConfig, PackConfig, RunConfig
from components.core.learning.augmentation import normal_view
from components.core.learning.images import Images, open_images
from components.core.learning.inference import well_logits
from components.core.learning.network import Classifier, prepare
from components.core.learning.network_size import measure_size
from components.core.processes import cores
from components.core.screen.ome_zarr import encode_chunk
from pipelines.plan.rates import SHIPPED
from tests.bench.measure import Row
from tests.bench.sites import CHANNELS, SIZE, origin, packed_screen, pixel_sites
from tests.bench.training import unvalidated

PLATES, WELLS = 8, 308
EPOCHS = 3
STEPS = 15
"""Steps of a timing on ready tensors, after WARM uncounted ones."""
WARM = 4
CLASSES = 1139
VIEWS = 8


class Trained(NamedTuple):
    """Epochs from packed sites: medians over all but the first."""

    sites_per_s: float
    wait: float
    peak_gib: float
    cpu_ms: float  # of this process, a site


def rows() -> Iterator[Row]:
    """Both networks, each row as it is measured; none without a GPU."""
    if not torch.cuda.is_available():
        return
    config = RunConfig.load("rxrx1")
    with _images(config) as images:
        for backbone in config.backbones:
            yield from _training(images, config, backbone)
        yield from _variants(images, config, config.backbones[0])


def _training(images: Images, config: RunConfig, backbone: BackboneConfig) -> list[Row]:
    batch = config.pretrain.batch_size
    ready = ready_rate(images, _network(images, backbone), batch)
    found = _epochs(images, _network(images, backbone), batch)
    network = _network(images, backbone)
    prepare(network, ComputeConfig(), images.device)
    forward = _forward_rate(images, network, batch)
    card = torch.cuda.get_device_name()
    return [
        Row(f"gpu_training {backbone.name}", found.sites_per_s, "sites/s", ready, found.sites_per_s / ready,
            f"epochs of pretrain on packed {SIZE} px {origin()}, batches of {batch}, bfloat16; baseline the same steps on "
            f"pixels in GPU memory; {found.wait:.1%} of the time waiting for data, {found.cpu_ms:.2f} CPU-ms a "
            f"site on {cores()} cores, {found.peak_gib:.1f} GiB; {card}"),
        Row(f"gpu_forward {backbone.name}", forward, "passes/s", ready, forward / ready,
            f"{VIEWS} views of packed sites, as in prediction; baseline training passes; {card}"),
    ]  # fmt: skip


def _variants(images: Images, config: RunConfig, backbone: BackboneConfig) -> Iterator[Row]:
    """Other ways of computing against the default, on pixels in GPU memory."""
    batch = config.pretrain.batch_size
    for name, compute, deterministic in (
        ("convolutions by trial", ComputeConfig(), False),
        ("float32", ComputeConfig(precision="float32"), True),
        ("compiled", ComputeConfig(compile=True), True),
    ):
        plain = ready_rate(images, _network(images, backbone), batch)
        begun = time.perf_counter()
        rate = ready_rate(images, _network(images, backbone), batch, compute, deterministic)
        yield Row(f"gpu_training {backbone.name}, {name}", rate, "sites/s", plain, rate / plain,
                  f"baseline the default; {time.perf_counter() - begun:.0f} s with its start")  # fmt: skip


def ready_rate(
    images: Images, network: Classifier, batch: int, compute: ComputeConfig | None = None, deterministic: bool = True
) -> float:
    """Sites a second of training steps on pixels of the device: standardised, viewed, forward, backward, Adam.

    Unless `deterministic`, as training is, cuDNN tries which convolution is fastest.
    """
    prepare(network, compute or ComputeConfig(), images.device)
    pixels_BCHW = next(images.loader.batches([np.arange(batch)])).to(images.device)
    plate_B = torch.from_numpy(images.table.plate_W[np.arange(batch)])
    target_B = torch.arange(batch, device=images.device)
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    network.train()
    try:
        for step in range(WARM + STEPS):
            if step == WARM:
                torch.cuda.synchronize()
                begun = time.perf_counter()
            optimiser.zero_grad(set_to_none=True)
            x_BCHW = normal_view(images.standardise(pixels_BCHW, plate_B, generator), images.augment, generator)
            F.cross_entropy(network(x_BCHW, target_B), target_B).backward()
            optimiser.step()
        torch.cuda.synchronize()
        return STEPS * batch / (time.perf_counter() - begun)
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def _epochs(images: Images, network: Classifier, batch: int) -> Trained:
    cpu: list[float] = []
    training = unvalidated(network, images, batch, EPOCHS + 1)
    training.run(lambda _: cpu.append(time.process_time()))
    counted = training.history[1:]
    return Trained(
        statistics.median(record["sites_per_s"] for record in counted),
        statistics.median(record["data_wait"] for record in counted),
        max(record["peak_memory_gib"] for record in counted),
        1e3 * (cpu[-1] - cpu[0]) / (EPOCHS * images.table.wells),
    )


def _forward_rate(images: Images, network: Classifier, batch: int) -> float:
    wells = np.arange(images.table.wells // 2)
    well_logits(network, images, wells[: 2 * batch], VIEWS, batch, CLASSES)
    begun = time.perf_counter()
    well_logits(network, images, wells, VIEWS, batch, CLASSES)
    return len(wells) * VIEWS / (time.perf_counter() - begun)


def _network(images: Images, backbone: BackboneConfig) -> Classifier:
    torch.manual_seed(0)
    config = RunConfig.load("rxrx1")
    return Classifier(backbone, config.head, CLASSES, CHANNELS, SIZE).to(images.device)


@contextmanager
def _images(config: RunConfig) -> Iterator[Images]:
    """Packed sites in a folder, none of them kept in memory, on the GPU."""
    chunks = cycle([encode_chunk(pixels_CSS, PackConfig()) for pixels_CSS in pixel_sites()])
    with tempfile.TemporaryDirectory(prefix="cellsignal-bench-") as folder:
        store, manifest = packed_screen(Path(folder), SIZE, PLATES, WELLS, chunks)
        uncached = config.model_copy(update={"loader": LoaderConfig(cache_gib=0)})
        yield open_images(uncached, manifest, store, torch.device("cuda"))


def write_rates(kind: str) -> None:
    """Replaces the rates of one kind of GPU in the file that plans read; they are the last part of it."""
    config = RunConfig.load("rxrx1")
    batch = config.pretrain.batch_size
    source = (
        f"one {torch.cuda.get_device_name()}, bfloat16, torch {torch.__version__}, packed sites of a local folder, "
    )
    source += f"batches of {batch}, {time.strftime('%B %Y')}"
    text = SHIPPED.read_text(encoding="utf-8")
    entries = [entry for entry in yaml.safe_load(text)["measured"] if entry["gpu"] != kind]
    with _images(config) as images:
        for backbone in config.backbones:
            network = _network(images, backbone)
            training = _epochs(images, network, batch).sites_per_s
            prepare(network, ComputeConfig(), images.device)
            forward = _forward_rate(images, network, batch)
            gmacs = round(measure_size(backbone, CHANNELS, SIZE).macs / 1e9, 2)
            rates = {"gmacs": gmacs, "training": round(training), "forward": round(forward)}
            entries.append({"gpu": kind, "backbone": backbone.name, "image_size": SIZE, **rates, "source": source})
    SHIPPED.write_text(with_rates(text, entries), encoding="utf-8")


def with_rates(text: str, entries: Sequence[Mapping[str, object]]) -> str:
    """The content of rates.yaml with other measured rates; its other lines, comments included, stay as they are."""
    return text[: text.index("\nmeasured:") + 1] + yaml.safe_dump({"measured": [*entries]}, sort_keys=False)


if __name__ == "__main__":
    progress.silence()
    if sys.argv[1:2] == ["rates"] and len(sys.argv) == 3:
        write_rates(sys.argv[2])
    else:
        for row in rows():
            text = f"{row.name}: {row.value:.1f} {row.unit}, {row.baseline:.1f}, {row.ratio:.3f}; {row.note}"
            print(text, flush=True)  # noqa: T201
