"""`python -m components.infer` runs the step; without --base it predicts new plates with a published model."""

from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings
from components.core.storage.artifacts import step_files


def infer(
    config: Annotated[str, Option(help="shipped name or YAML file; for new plates the config.yaml of the model's run")],
    screen: Annotated[str, Option(help="manifest that normalize wrote: a path, or s3://BUCKET/KEY")],
    holdout: Annotated[str, Option(help="manifest of the held-out experiments, or of the new plates: path or s3://")],
    fold: Annotated[int, Option(help="the fold that the networks were trained for")],
    cell_type: Annotated[str, Option(help="cell type of the wells")],
    logits: Annotated[str, Option(help="folder to write, path or s3://: logits of the fold")],
    embeddings: Annotated[str, Option(help="folder to write, path or s3://: embeddings of all wells, as Parquet")],
    base: Annotated[
        list[str],
        Option(
            help="finetune's output, or pretrain's of each backbone: path or s3://; none for new plates, which the model "
            "named in --screen predicts"
        ),
    ] = [],  # noqa: B006
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Predicts with trained networks."""
    settings = RunConfig.load(config, set).section(InferSettings)
    from components.infer.step import main  # loads torch, for which a wrong configuration need not wait

    with step_files() as files:
        manifest, held_out = (files.input(each) for each in (screen, holdout))
        bases = [files.input(each) for each in base]
        main(
            settings.model_dump_json(),
            manifest,
            held_out,
            bases,
            fold,
            cell_type,
            files.output(logits),
            files.output(embeddings),
        )


if __name__ == "__main__":
    run_command(infer)
