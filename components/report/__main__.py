"""report by hand: `python -m components.report --config C --screen F --holdout F --uri DIR --out DIR ...`, new plates too."""

from pathlib import Path
from typing import Annotated

import typer

from components.core import progress
from components.core.command import run_command
from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.exchange import exchange
from components.core.storage.manifest import Manifest
from components.report import new_plates, step


def report(
    config: Annotated[str, typer.Option(help="configuration, by name or file; of new plates, the model's config.yaml")],
    screen: Annotated[
        str, typer.Option(help="manifest of the screen, of new plates what stands for it: a path, or s3://BUCKET/KEY")
    ],
    holdout: Annotated[str, typer.Option(help="manifest of the held-out experiments, or of the new plates, likewise")],
    uri: Annotated[list[str], typer.Option(help="output of assign, path or s3://; once a cell type")],
    out: Annotated[str, typer.Option(help="directory to write: a path, or s3://BUCKET/KEY")],
    holdout_labels: Annotated[
        str | None, typer.Option(help="labels of the held-out wells, id_code,sirna, likewise; new plates have none")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="labels of unlabelled wells, or of new plates', id_code,sirna, likewise")
    ] = None,
    lineage: Annotated[str | None, typer.Option(help="lineage so far, JSON, likewise")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, changes the configuration")] = None,
) -> None:
    """Writes predictions, metrics and the report of a run, or of new plates with their quality control."""
    settings = RunConfig.load(config, changes or ())
    with exchange() as given, progress.task("report"):
        known = step.json_object(Path(given.input(lineage)).read_text(encoding="utf-8"), lineage) if lineage else {}
        manifests = [Path(given.input(each)) for each in (screen, holdout)]
        of_new_plates = Manifest.read(manifests[0]).model is not None
        if of_new_plates and holdout_labels is not None:
            raise InputError("--holdout-labels: new plates have none; give what is known of them as --truth")
        if not of_new_plates and holdout_labels is None:
            raise InputError(
                "--holdout-labels is missing; give the labels that normalize wrote, or for new plates as --screen what "
                f"normalize --model wrote, not {screen}"
            )
        told = Path(given.input(truth)) if truth else None
        if holdout_labels is None:
            new_plates.run(settings, *manifests, told, uri, Path(given.output(out)), known)
        else:
            labels = Path(given.input(holdout_labels))
            step.run(settings, *manifests, labels, told, uri, Path(given.output(out)), known)


if __name__ == "__main__":
    run_command(report)
