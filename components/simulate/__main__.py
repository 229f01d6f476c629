"""`python -m components.simulate --config demo --out DIR` writes a simulated screen."""

from pathlib import Path
from typing import Annotated

import typer

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.screen.simulation.plate_design import SimulationSettings
from components.core.storage.artifacts import step_files
from components.simulate.step import run


def simulate(
    config: Annotated[str, typer.Option(help="shipped name or YAML file")],
    out: Annotated[str, typer.Option(help="folder to create: a path, or s3://BUCKET/KEY")],
    changes: Annotated[list[str], typer.Option("--set", help="KEY=VALUE, for example simulate.effect=0.8")] = [],  # noqa: B006
) -> None:
    """Writes a simulated screen in the Kaggle layout, and truth.csv beside it."""
    settings = RunConfig.load(config, changes).section(SimulationSettings)
    with step_files() as files:
        run(settings, Path(files.output(out)))


if __name__ == "__main__":
    run_command(simulate)
