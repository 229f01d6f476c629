"""python -m components.finetune: the step by hand."""

from pathlib import Path
from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.learning.step_settings import MeanTeacherSettings


def finetune(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    screen: Annotated[Path, Option(help="manifest that normalize wrote")],
    base: Annotated[list[Path], Option(help="pretrain's output; once for each backbone")],
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    cell_type: Annotated[str, Option(help="whose wells")],
    weights: Annotated[Path, Option(help="folder to write")],
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Trains mean-teacher pairs on one cell type. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, set).section(MeanTeacherSettings)
    from components.finetune.step import main  # loads torch, for which a wrong configuration need not wait

    main(settings.model_dump_json(), str(screen), [str(b) for b in base], fold, cell_type, str(weights))


run_command(finetune)
