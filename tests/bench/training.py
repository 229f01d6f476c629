"""Training as the steps do it: an epoch against its network alone, cost over the screen's size, and the start of a step.

Pixels are noise: the figures do not depend on them. `python -m tests.bench.training epoch|scale [SIZE]` is one measurement in a
process of its own, so that its memory is its own, too; it prints JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from components.core import progress
from components.core.config import ComputeConfig, LoaderConfig, PretrainConfig, RunConfig
from components.core.learning.augmentation import normal_view
from components.core.learning.images import Images, open_images
from components.core.learning.network import Classifier, prepare
from components.core.learning.supervised import SupervisedTraining
from tests.bench.measure import ROOT, Row, in_child, slope
from tests.bench.sites import CHANNELS, packed_screen
from tests.components.core.learning.tiny_networks import data_of

SIZES, ROUNDS, REPEATS = (1, 2, 4, 8), 3, 5
PLATES, WELLS = 8, 60
STEPS = ("pretrain", "finetune", "pseudo_label", "infer", "normalize", "ensemble", "assign", "report")
STARTS = 3
CPU = torch.device("cpu")


def rows() -> list[Row]:
    """An epoch, its growth with the screen, and the start of every step."""
    return [_epoch_row(), *_scaling_rows(), *_startup_rows()]


def _epoch_row() -> Row:
    found = in_child("tests.bench.training", "epoch")
    ready, epoch = (np.array(found[name]) for name in ("ready", "epoch"))
    note = (
        f"an epoch of the demo's plain from packed sites; baseline its steps on ready tensors; ratios "
        f"{(epoch / ready).min():.2f} to {(epoch / ready).max():.2f}; {found['wait']:.1%} of the time waiting for data"
    )
    rate, baseline = float(np.median(epoch)), float(np.median(ready))
    return Row("epoch_vs_model_demo", rate, "sites/s", baseline, float(np.median(epoch / ready)), note)


def _scaling_rows() -> list[Row]:
    # In turn, and the least of each: the clock of a virtual machine changes, and other programs only add.
    found = [{size: in_child("tests.bench.training", "scale", size) for size in SIZES} for _ in range(ROUNDS)]
    cpu = [min(round_[size]["cpu"] for round_ in found) for size in SIZES]
    peak = [max(round_[size]["peak_mib"] for round_ in found) for size in SIZES]
    times = f"log-log slope of CPU-seconds of an epoch over {SIZES} times the screen: "
    times += ", ".join(f"{seconds:.2f}" for seconds in cpu)
    peaks = f"largest over smallest peak of memory: {', '.join(f'{mib:.0f}' for mib in peak)} MiB"
    return [
        Row("scaling_epoch", slope(SIZES, cpu), "slope", 1.0, note=times),
        Row("memory_epoch", max(peak) / min(peak), "ratio", note=peaks),
    ]


def _startup_rows() -> list[Row]:
    found = []
    for step in STEPS:
        seconds = sorted(_start_of(step) for _ in range(STARTS))
        note = f"from the start of the process until the step is imported; up to {seconds[-1]:.2f}"
        found.append(Row(f"step_startup_s {step}", statistics.median(seconds), "CPU-s", note=note))
    return found


def _start_of(step: str) -> float:
    """CPU-seconds of a process that imports a step."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"from components.{step}.step import main"], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def opened(folder: Path, config: RunConfig, plates: int) -> tuple[Images, Classifier]:
    """Images of a packed screen, each fetched and decoded in every epoch, and the configuration's first network."""
    store, manifest = packed_screen(folder, config.screen.input_side, plates, WELLS)
    uncached = config.model_copy(update={"loader": LoaderConfig(cache_gib=0)})
    torch.manual_seed(0)
    network = Classifier(config.backbones[0], config.head, WELLS, CHANNELS, config.screen.input_side)
    return open_images(uncached, manifest, store, CPU), network


def unvalidated(network: Classifier, images: Images, batch: int, epochs: int) -> SupervisedTraining:
    """Epochs over all wells as pretrain runs them, without validation."""
    config = PretrainConfig(epochs=epochs, batch_size=batch, learning_rates=(1e-3,), milestones=(), selection="last")
    return SupervisedTraining(network, data_of(images, np.arange(images.table.wells)), config, 1, ComputeConfig())


def epoch(folder: Path) -> dict[str, object]:
    """An epoch from packed sites, and the same steps on ready tensors, in turn; sites a second."""
    config = RunConfig.load("demo")
    images, network = opened(folder, config, PLATES)
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

    found: dict[str, list[float]] = {"ready": [], "epoch": [], "wait": []}
    for round_ in range(REPEATS + 1):
        rate = ready()
        training = unvalidated(network, images, size, 1)
        training.run()
        if round_:
            found["ready"].append(rate)
            found["epoch"].append(training.history[0]["sites_per_s"])
            found["wait"].append(training.history[0]["data_wait"])
    return {**found, "wait": statistics.median(found["wait"])}


def scale(folder: Path, size: int) -> dict[str, float]:
    """CPU-seconds of an epoch of a screen of `size` times PLATES plates, and the process's peak memory."""
    config = RunConfig.load("demo")
    images, network = opened(folder, config, PLATES * size)
    taken = []
    for _ in range(3):
        begun = time.process_time()
        unvalidated(network, images, config.pretrain.batch_size, 1).run()
        taken.append(time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": min(taken[1:]), "peak_mib": peak}


if __name__ == "__main__":
    progress.silence()
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as name:
        here = Path(name)
        print(json.dumps(epoch(here) if sys.argv[1] == "epoch" else scale(here, int(sys.argv[2]))))  # noqa: T201
