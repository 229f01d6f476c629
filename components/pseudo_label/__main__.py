"""python -m components.pseudo_label: the step by hand."""

from pathlib import Path
from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.learning.step_settings import MeanTeacherSettings


def pseudo_label(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    screen: Annotated[Path, Option(help="manifest that normalize wrote")],
    holdout: Annotated[Path, Option(help="manifest of the held-out experiments")],
    base: Annotated[Path, Option(help="finetune's output")],
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    cell_type: Annotated[str, Option(help="whose wells")],
    weights: Annotated[Path, Option(help="folder to write: students, teachers, pseudo-labels")],
    logits: Annotated[Path, Option(help="folder to write: logits of the fold")],
    embeddings: Annotated[Path, Option(help="folder to write: embeddings of all wells, as Parquet")],
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Trains with pseudo-labels, then predicts. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, set).section(MeanTeacherSettings)
    from components.pseudo_label.step import main  # loads torch, for which a wrong configuration need not wait

    main(
        settings.model_dump_json(),
        str(screen),
        str(holdout),
        str(base),
        fold,
        cell_type,
        str(weights),
        str(logits),
        str(embeddings),
    )


run_command(pseudo_label)
