"""`python -m components.ensemble --logits DIR --logits DIR --out DIR` averages the folds of one cell type."""

from pathlib import Path
from typing import Annotated

from components.core.command import AddressOption, OutOption, run_command
from components.core.storage.artifacts import step_files
from components.ensemble.step import run


def ensemble(
    logits: Annotated[
        list[str], AddressOption(metavar="FOLDER", help="logits of a fold, directory or s3://; give one a fold")
    ],
    out: OutOption,
) -> None:
    """Joins the folds of one cell type."""
    with step_files() as files:
        run([Path(files.input(fold)) for fold in logits], Path(files.output(out)))


if __name__ == "__main__":
    run_command(ensemble)
