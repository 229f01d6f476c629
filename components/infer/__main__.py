"""python -m components.infer: the step by hand."""

from pathlib import Path
from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings


def infer(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    screen: Annotated[Path, Option(help="manifest that normalize wrote")],
    holdout: Annotated[Path, Option(help="manifest of the held-out experiments")],
    base: Annotated[list[Path], Option(help="finetune's output, or pretrain's, then once a backbone")],
    fold: Annotated[int, Option(help="the fold that the networks were trained for")],
    cell_type: Annotated[str, Option(help="whose wells")],
    logits: Annotated[Path, Option(help="folder to write: logits of the fold")],
    embeddings: Annotated[Path, Option(help="folder to write: embeddings of all wells, as Parquet")],
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Predicts with trained networks. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, set).section(InferSettings)
    from components.infer.step import main  # loads torch, for which a wrong configuration need not wait

    bases = [str(folder) for folder in base]
    out = (str(logits), str(embeddings))
    main(settings.model_dump_json(), str(screen), str(holdout), bases, fold, cell_type, *out)


run_command(infer)
