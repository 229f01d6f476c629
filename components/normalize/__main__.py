"""normalize by hand: `python -m components.normalize --config demo --source SCREEN --screen F ...`."""

from typing import Annotated

import typer

from components.core.command import run_command
from components.core.config import RunConfig
from components.core.storage.exchange import exchange
from components.normalize.config import NormalizeConfig
from components.normalize.step import main


def normalize(
    config: Annotated[str, typer.Option(help="shipped name or YAML file")],
    source: Annotated[
        str, typer.Option(help="screen in the Kaggle or the rxrx.ai layout: a directory, or s3://BUCKET/PREFIX")
    ],
    screen: Annotated[str, typer.Option(help="output: manifest of the screen, a path or s3://BUCKET/KEY")],
    holdout: Annotated[str, typer.Option(help="output: manifest of the held-out experiments, likewise")],
    holdout_labels: Annotated[str, typer.Option(help="output: CSV of the held-out labels, likewise")],
    change: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, a change of one field")] = None,
) -> None:
    """Packs a screen's plates into the object store and writes its manifests."""
    section = RunConfig.load(config, change or []).section(NormalizeConfig)
    with exchange() as given:
        main(section.model_dump_json(), source, *(given.output(each) for each in (screen, holdout, holdout_labels)))


if __name__ == "__main__":
    run_command(normalize)
