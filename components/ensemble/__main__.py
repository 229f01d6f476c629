"""`python -m components.ensemble --logits DIR --logits DIR --out DIR` averages the folds of one cell type."""

from pathlib import Path
from typing import Annotated

import typer

from components.core.command import run_command
from components.ensemble.step import run


def ensemble(
    logits: Annotated[list[Path], typer.Option(help="logits directory of a fold; once a fold")],
    out: Annotated[Path, typer.Option(help="directory to create")],
) -> None:
    """Joins the logits of the folds of one cell type."""
    run(logits, out)


if __name__ == "__main__":
    run_command(ensemble)
