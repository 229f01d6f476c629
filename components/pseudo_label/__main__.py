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
from components.core.storage.artifacts import run_step


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
    inputs = {"screen": screen, "holdout": holdout, "base": base}
    outputs = {"weights": weights, "logits": logits, "embeddings": embeddings}
    run_step("pseudo_label", config, changes, inputs, outputs, fold=fold, cell_type=cell_type)


if __name__ == "__main__":
    run_command(pseudo_label)
