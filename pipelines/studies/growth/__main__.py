"""python -m pipelines.studies.growth: the rungs with the object store of the AWS environment variables."""

import os
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from components.core.command import cancel_on_signals, number_items, run_command
from components.core.config import RunConfig
from pipelines.studies.growth.run import grow, lineage_of


def growth(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    out: Annotated[Path, Option(help="folder of growth.json and growth.png")],
    seeds: Annotated[list[str], Option(help="whole numbers: --seeds 1,2 or --seeds 1 --seeds 2")] = [],  # noqa: B006
    workers: Annotated[int, Option(min=1, help="processes side by side")] = os.cpu_count() or 1,
    code_version: Annotated[str, Option(help="for growth.json")] = "unknown",
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Runs the rungs of the growth chart."""
    cancel_on_signals("run the same command again to go on from the finished tasks")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which inherit it before they load torch
    numbers = number_items("--seeds", seeds or ["1,2,3"], 0)
    console = Console(width=None if sys.stdout.isatty() else 120)
    grown = grow(RunConfig.load(config, set), numbers, out, workers, lineage_of(code_version), console)
    console.print(grown.table())
    for what, gains in grown.gains().items():
        shown = ", ".join(f"{gain:+.3f} (seed {seed})" for seed, gain in gains.items())
        console.print(f"{what}: {shown}", highlight=False, soft_wrap=True)
    console.print(f"chart: {(out / 'growth.png').resolve()}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    run_command(growth)
