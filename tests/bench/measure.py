"""A figure of the bench, and repeated measurements of CPU and wall time that affect all compared works alike."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
START = time.monotonic()


@dataclass(frozen=True)
class Row:
    """A figure of this project and, if there is one, of the baseline in the same unit."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    """how many times better than the baseline: times as fast, or times as many correct wells"""
    note: str = ""


def report(doing: str) -> None:
    """Prints the current measurement, with the minutes since the start, to standard error."""
    print(f"{(time.monotonic() - START) / 60:5.1f} min  {doing}", file=sys.stderr, flush=True)  # noqa: T201


@dataclass(frozen=True)
class Timing:
    """Repeats of one measurement: median and spread of CPU-seconds, worker processes included, and of wall seconds."""

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


def in_child(module: str, *arguments: object) -> Any:
    """Runs a module as a process of its own; returns the JSON of its last line."""
    report(" ".join(map(str, (module.rpartition(".")[2], *arguments))))
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def cpu_seconds() -> float:
    """CPU time so far of this process and its descendants without an S3 server; of a grandchild only once it has ended."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ended = sum(each.ru_utime + each.ru_stime for each in used)
    return ended + sum(_ticks(child) for child in children(os.getpid())) / os.sysconf("SC_CLK_TCK")


def children(parent: int) -> list[int]:
    """Process ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):  # a thread may end at any moment
            found += map(int, task.read_text().split())
    return found


def _ticks(process: int) -> int:
    """Clock ticks of a process and of its children that ended; 0 if it has just ended itself, or is the S3 server."""
    with suppress(OSError):
        name, _, fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")
        return 0 if name.endswith("(weed") else sum(map(int, fields.split()[11:15]))
    return 0


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Log-log slope by least squares: 1 if values are proportional to sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
