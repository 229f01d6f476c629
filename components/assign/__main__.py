"""`python -m components.assign --config C --screen F --holdout F --logits DIR --out DIR` names a cell type's wells."""

from pathlib import Path
from typing import Annotated

import typer

from components.assign.step import AssignConfig, run
from components.core.command import run_command
from components.core.config import RunConfig


def assign(
    config: Annotated[str, typer.Option(help="shipped name or YAML file")],
    screen: Annotated[Path, typer.Option(help="manifest of the screen, screen.json")],
    holdout: Annotated[Path, typer.Option(help="manifest of the held-out experiments, holdout.json")],
    logits: Annotated[Path, typer.Option(help="logits directory, from ensemble")],
    out: Annotated[Path, typer.Option(help="directory to create")],
    changes: Annotated[list[str], typer.Option("--set", help="KEY=VALUE, for example prior.enabled=false")] = [],  # noqa: B006
) -> None:
    """Names the treatment wells of one cell type."""
    run(RunConfig.load(config, changes).section(AssignConfig), screen, holdout, logits, out)


if __name__ == "__main__":
    run_command(assign)
