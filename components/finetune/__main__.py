"""python -m components.finetune: runs the step from the command line."""

from typing import Annotated

from typer import Option

from components.core.command import AddressOption, ConfigOption, OutOption, ScreenOption, SetOption, run_command
from components.core.storage.artifacts import run_step


def finetune(
    config: ConfigOption,
    screen: ScreenOption,
    base: Annotated[
        list[str],
        AddressOption(metavar="FOLDER", help="output of pretrain: a path, or s3://BUCKET/KEY; once per backbone"),
    ],
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    cell_type: Annotated[str, Option(help="the cell type to train on")],
    weights: OutOption,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Trains mean-teacher pairs on one cell type. The object store comes from the AWS environment variables."""
    inputs = {"screen": screen, "bases": base}
    run_step("finetune", config, changes, inputs, {"weights": weights}, fold=fold, cell_type=cell_type)


if __name__ == "__main__":
    run_command(finetune)
