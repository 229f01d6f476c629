"""`python -m components.infer` runs the step; without --base it predicts new plates with a published model."""

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


def infer(
    config: ConfigOption,
    screen: ScreenOption,
    holdout: HoldoutOption,
    fold: Annotated[int, Option(help="the fold that the networks were trained for")],
    cell_type: Annotated[str, Option(help="cell type of the wells")],
    logits: LogitsOption,
    embeddings: EmbeddingsOption,
    base: Annotated[
        list[str],
        AddressOption(
            metavar="FOLDER",
            help="output of finetune, or of pretrain for each backbone: path or s3://; none for new plates, which the model "
            "of --screen predicts",
        ),
    ] = [],  # noqa: B006
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Predicts with trained networks."""
    inputs, outputs = (
        {"screen": screen, "holdout": holdout, "bases": base},
        {"logits": logits, "embeddings": embeddings},
    )
    run_step("infer", config, changes, inputs, outputs, fold=fold, cell_type=cell_type)


if __name__ == "__main__":
    run_command(infer)
