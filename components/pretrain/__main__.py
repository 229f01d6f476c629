"""python -m components.pretrain: runs the step from the command line."""

from typing import Annotated

from typer import Option

from components.core.command import ConfigOption, OutOption, ScreenOption, SetOption, run_command
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files


def pretrain(
    config: ConfigOption,
    screen: ScreenOption,
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    backbone: Annotated[str, Option(help="name of a configured backbone")],
    weights: OutOption,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Trains one backbone on all cell types of a fold. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, changes).model_dump_json()
    from components.pretrain.step import main  # imports torch, which a wrong configuration need not wait for

    with step_files() as files:
        main(files.input(screen), fold, backbone, files.output(weights), settings)


if __name__ == "__main__":
    run_command(pretrain)
