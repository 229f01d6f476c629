"""python -m components.pseudo_label: runs the step from the command line."""

from typing import Annotated

from typer import Option

from components.core.command import (
    AddressOption,
    ConfigOption,
    EmbeddingsOption,
    HoldoutOption,
    LogitsOption,
    ScreenOption,
    SetOption,
    run_command,
)
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files


def pseudo_label(
    config: ConfigOption,
    screen: ScreenOption,
    holdout: HoldoutOption,
    base: Annotated[str, AddressOption(help="output of finetune: a path, or s3://BUCKET/KEY")],
    fold: Annotated[int, Option(help="the fold whose experiments validate")],
    cell_type: Annotated[str, Option(help="the cell type to train on and predict")],
    weights: Annotated[str, AddressOption(help="folder to write, path or s3://: students, teachers, pseudo-labels")],
    logits: LogitsOption,
    embeddings: EmbeddingsOption,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Trains with pseudo-labels, then predicts. The object store comes from the AWS environment variables."""
    settings = RunConfig.load(config, changes).model_dump_json()
    from components.pseudo_label.step import main  # imports torch, which a wrong configuration need not wait for

    with step_files() as files:
        manifest, held_out, pair = (files.input(each) for each in (screen, holdout, base))
        trained, scores, vectors = (files.output(each) for each in (weights, logits, embeddings))
        main(manifest, held_out, pair, fold, cell_type, trained, scores, vectors, settings)


if __name__ == "__main__":
    run_command(pseudo_label)
