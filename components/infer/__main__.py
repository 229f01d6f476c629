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
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files


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
    settings = RunConfig.load(config, changes).model_dump_json()
    from components.infer.step import main  # loads torch, for which a wrong configuration need not wait

    with step_files() as files:
        manifest, held_out = (files.input(each) for each in (screen, holdout))
        bases = [files.input(each) for each in base]
        main(
            manifest,
            held_out,
            bases,
            fold,
            cell_type,
            files.output(logits),
            files.output(embeddings),
            settings,
        )


if __name__ == "__main__":
    run_command(infer)
