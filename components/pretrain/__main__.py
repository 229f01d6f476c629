"""python -m components.pretrain: runs the step from the command line."""

from typing import Annotated

from typer import Option

from components.core.command import ConfigOption, OutOption, ScreenOption, SetOption, run_command
from components.core.storage.artifacts import run_step


def pretrain(
    config: ConfigOption,
    screen: ScreenOption,
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    backbone: Annotated[str, Option(help="name of a configured backbone")],
    weights: OutOption,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Trains one backbone on all cell types of a fold. The object store comes from the AWS environment variables."""
    run_step("pretrain", config, changes, {"screen": screen}, {"weights": weights}, fold=fold, backbone=backbone)


if __name__ == "__main__":
    run_command(pretrain)
