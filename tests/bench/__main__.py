"""Measurements: a table, and bench.json in the current folder. `make bench`, `make bench ROWS=loading`.

A module of this folder with `rows()` takes part if its name is in MODULES.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from components.core import progress
from tests.bench.measure import report

MODULES = ("packing", "loading", "training", "gpu", "balancing")
# One thread for everything that is compared. Set before a module below loads NumPy.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def machine() -> dict[str, str | int | None]:
    """The machine and the versions of the figures."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
    }


def main(chosen: list[str]) -> None:
    """Measures the chosen of MODULES, separated by spaces or commas, or all; prints each module's table when it is done."""
    os.environ.update(THREADS)
    names = [name for part in chosen for name in part.split(",") if name] or list(MODULES)
    if unknown := [name for name in names if name not in MODULES]:
        sys.exit(f"error: no rows {', '.join(unknown)}; known are {', '.join(MODULES)}")
    here, console, rows = machine(), Console(width=None if sys.stdout.isatty() else 200), []
    for number, name in enumerate(names, 1):
        report(f"[{number}/{len(names)}] {name}")
        found = list(import_module(f"tests.bench.{name}").rows())
        rows += found
        table = Table("row", "value", "baseline", "unit", "ratio", "note", title=f"{name}: {here['cpu']}, 1 thread")
        for column in table.columns[1:3]:
            column.justify = "right"
        for row in found:
            baseline, ratio = (f"{x:.4g}" if x is not None else "" for x in (row.baseline, row.ratio))
            table.add_row(row.name, f"{row.value:.4g}", baseline, row.unit, ratio, row.note)
        if found:
            console.print(table)
    text = json.dumps({"machine": here, "rows": [asdict(row) for row in rows]}, indent=2)
    Path("bench.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    progress.silence()  # of the measured steps
    main(sys.argv[1:])
