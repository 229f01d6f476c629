"""`python -m components.assign --config C --screen F --holdout F --logits DIR --out DIR`: predicts a cell type's wells."""

from pathlib import Path
from typing import Annotated

import typer

from components.assign.step import AssignConfig, run
from components.core.command import run_command
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files


def assign(
    config: Annotated[str, typer.Option(help="shipped name or YAML file")],
    screen: Annotated[str, typer.Option(help="manifest of the screen, screen.json: a path, or s3://BUCKET/KEY")],
    holdout: Annotated[str, typer.Option(help="manifest of the held-out experiments, holdout.json: a path or s3://")],
    logits: Annotated[str, typer.Option(help="logits directory, from ensemble, or s3://")],
    out: Annotated[str, typer.Option(help="directory to create: a path, or s3://BUCKET/KEY")],
    changes: Annotated[list[str], typer.Option("--set", help="KEY=VALUE, for example prior.enabled=false")] = [],  # noqa: B006
) -> None:
    """Predicts the treatment wells of one cell type."""
    section = RunConfig.load(config, changes).section(AssignConfig)
    with step_files() as files:
        manifest, held_out, read = (Path(files.input(each)) for each in (screen, holdout, logits))
        run(section, manifest, held_out, read, Path(files.output(out)))


if __name__ == "__main__":
    run_command(assign)
