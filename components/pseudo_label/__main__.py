"""python -m components.pseudo_label: runs the step from the command line."""

from typing import Annotated

from typer import Option

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.learning.step_settings import MeanTeacherSettings
from components.core.storage.artifacts import step_files


def pseudo_label(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    screen: Annotated[str, Option(help="manifest that normalize wrote: a path, or s3://BUCKET/KEY")],
    holdout: Annotated[str, Option(help="manifest of the held-out experiments: a path, or s3://BUCKET/KEY")],
    base: Annotated[str, Option(help="output of finetune: a path, or s3://BUCKET/KEY")],
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    cell_type: Annotated[str, Option(help="the cell type to train on and predict")],
    weights: Annotated[str, Option(help="folder to write, path or s3://: students, teachers, pseudo-labels")],
    logits: Annotated[str, Option(help="folder to write, path or s3://: logits of the fold")],
    embeddings: Annotated[str, Option(help="folder to write, path or s3://: embeddings of all wells, as Parquet")],
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Trains with pseudo-labels, then predicts. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, set).section(MeanTeacherSettings)
    from components.pseudo_label.step import main  # imports torch, which a wrong configuration need not wait for

    with step_files() as files:
        manifest, held_out, pair = (files.input(each) for each in (screen, holdout, base))
        trained, scores, vectors = (files.output(each) for each in (weights, logits, embeddings))
        main(settings.model_dump_json(), manifest, held_out, pair, fold, cell_type, trained, scores, vectors)


if __name__ == "__main__":
    run_command(pseudo_label)
