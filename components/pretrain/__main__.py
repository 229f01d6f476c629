"""python -m components.pretrain: the step by hand."""

from pathlib import Path
from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.learning.step_settings import PretrainSettings


def pretrain(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    screen: Annotated[Path, Option(help="manifest that normalize wrote")],
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    backbone: Annotated[str, Option(help="name of a configured backbone")],
    weights: Annotated[Path, Option(help="folder to write")],
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Trains one backbone on all cell types of a fold. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, set).section(PretrainSettings)
    from components.pretrain.step import main  # loads torch, for which a wrong configuration need not wait

    main(settings.model_dump_json(), str(screen), fold, backbone, str(weights))


run_command(pretrain)
