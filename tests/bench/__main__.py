"""All measurements: a table here, and bench.json in the current folder. `make bench`.

To measure something else, add a module with `rows()` to this folder and its name to MODULES.
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

MODULES = ("codecs", "packing", "loading", "training", "gpu", "balancing")
# One thread for everything that is compared. Set before a module below loads NumPy.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def machine() -> dict[str, str | int | None]:
    """What the figures hold for."""
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


def main() -> None:
    os.environ.update(THREADS)
    here, console = machine(), Console(width=None if sys.stdout.isatty() else 200)
    table = Table("what", "value", "baseline", "unit", "ratio", "note", title=f"{here['cpu']}, 1 thread")
    for column in table.columns[1:3]:
        column.justify = "right"
    rows = []
    for module in MODULES:
        rows += import_module(f"tests.bench.{module}").rows()
    for row in rows:
        baseline, ratio = (f"{x:.4g}" if x is not None else "" for x in (row.baseline, row.ratio))
        table.add_row(row.name, f"{row.value:.4g}", baseline, row.unit, ratio, row.note)
    console.print(table)
    text = json.dumps({"machine": here, "rows": [asdict(row) for row in rows]}, indent=2)
    Path("bench.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    progress.silence()  # what steps say is not what is measured here
    main()
