"""Training as the steps do it: an epoch against its network alone, cost over the screen's size, kills, and the start of a step.

Pixels are noise: what is measured does not depend on them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.row import Row, report
from tests.bench.sites import slope

SIZES, ROUNDS = (1, 2, 4, 8), 3
STEPS_WITH_TORCH = ("pretrain", "finetune", "pseudo_label", "infer")
STEPS_WITHOUT = ("normalize", "ensemble", "assign", "report")
KILLS = 20
ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[Row]:
    """All of them; each measurement is a process of its own, so that memory and start are its own too."""
    return [*_epoch(), *_scaling(), *_startup(), *_resumption()]


def _child(module: str, *arguments: object) -> Any:
    """What a measuring process printed as its last line."""
    report(" ".join(map(str, (module.rpartition(".")[2], *arguments))))
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def _epoch() -> list[Row]:
    found = _child("tests.bench.one_training", "epoch")
    ready, epoch = (np.array(found[name]) for name in ("ready", "epoch"))
    return [
        Row(
            "epoch_vs_model_demo",
            float(np.median(epoch)),
            "sites/s",
            float(np.median(ready)),
            float(np.median(epoch / ready)),
            f"an epoch of the demo's xception_small from packed sites; baseline its steps on ready tensors; ratios "
            f"{(epoch / ready).min():.2f} to {(epoch / ready).max():.2f}; {found['wait']:.1%} of the time waiting for data",
        )
    ]


def _scaling() -> list[Row]:
    # In turn, and the least of each: a virtual machine's clock changes from minute to minute, and others only ever add.
    found = [{size: _child("tests.bench.one_training", "scale", size) for size in SIZES} for _ in range(ROUNDS)]
    cpu = [min(round_[size]["cpu"] for round_ in found) for size in SIZES]
    peak = [max(round_[size]["peak_mib"] for round_ in found) for size in SIZES]
    return [
        Row(
            "scaling_epoch",
            slope(SIZES, cpu),
            "slope",
            1.0,
            note=f"log-log slope of CPU-seconds of an epoch over {SIZES} times the screen: "
            + ", ".join(f"{seconds:.2f}" for seconds in cpu),
        ),
        Row(
            "memory_epoch",
            max(peak) / min(peak),
            "ratio",
            note=f"largest over smallest peak of memory: {', '.join(f'{mib:.0f}' for mib in peak)} MiB",
        ),
    ]


def _startup() -> list[Row]:
    found = []
    for steps, limit in ((STEPS_WITH_TORCH, 4.0), (STEPS_WITHOUT, 1.5)):
        for step in steps:
            seconds = sorted(_start_of(step) for _ in range(3))
            found.append(
                Row(
                    f"step_startup_s {step}",
                    seconds[1],
                    "CPU-s",
                    limit,
                    limit / seconds[1],
                    f"from process start until it reads its first input; baseline the limit; up to {seconds[-1]:.2f}",
                )
            )
    return found


def _start_of(step: str) -> float:
    """CPU-seconds of a step until it finds that its first input is missing."""
    program = f"from components.{step}.step import main"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _resumption() -> list[Row]:
    found = _child("tests.components.core.learning.killed_training", KILLS, 1)
    return [
        Row(
            "resumption",
            found["identical"],
            f"of {found['tries']} identical",
            note=f"trainings of three steps, {found['killed']} killed at a random moment, {found['full']} on a full disk, "
            "then run again: weights and logits bit for bit those of an undisturbed one"
            + "".join(f"; {name} differs" for name in found["different"]),
        )
    ]
