"""`python -m components.assign --config C --screen F --holdout F --logits DIR --out DIR`: predicts a cell type's wells."""

from pathlib import Path
from typing import Annotated

from components.assign.step import run
from components.core.command import (
    AddressOption,
    ConfigOption,
    HoldoutOption,
    OutOption,
    ScreenOption,
    SetOption,
    run_command,
)
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files


def assign(
    config: ConfigOption,
    screen: ScreenOption,
    holdout: HoldoutOption,
    logits: Annotated[str, AddressOption(help="logits directory, from ensemble: a path, or s3://BUCKET/KEY")],
    out: OutOption,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Predicts the treatment wells of one cell type."""
    prior = RunConfig.load(config, changes).prior
    with step_files() as files:
        manifest, held_out, read = (Path(files.input(each)) for each in (screen, holdout, logits))
        run(manifest, held_out, read, Path(files.output(out)), prior)


if __name__ == "__main__":
    run_command(assign)
