"""`python -m components.report --config C --screen F --holdout F --uri DIR --out DIR ...`: of a run or of new plates."""

from pathlib import Path
from typing import Annotated

import typer

from components.core import progress
from components.core.command import run_command
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files
from components.report import step
from components.report.inputs import json_object


def report(
    config: Annotated[
        str, typer.Option(help="shipped name or YAML file; for new plates the config.yaml of the model's run")
    ],
    screen: Annotated[
        str, typer.Option(help="manifest of the screen that normalize wrote: a path, or s3://BUCKET/KEY")
    ],
    holdout: Annotated[
        str, typer.Option(help="manifest of the held-out experiments, or of the new plates: path or s3://")
    ],
    uri: Annotated[list[str], typer.Option(help="output of assign, path or s3://; once a cell type")],
    out: Annotated[str, typer.Option(help="directory to write: a path, or s3://BUCKET/KEY")],
    holdout_labels: Annotated[
        str | None,
        typer.Option(help="labels of the held-out wells, id_code,sirna, path or s3://; new plates have none"),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="labels of unlabelled or new wells, id_code,sirna, path or s3://")
    ] = None,
    lineage: Annotated[str | None, typer.Option(help="lineage so far, JSON, path or s3://")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, changes the configuration")] = None,
) -> None:
    """Writes predictions, metrics and the report of a run, or of new plates with their quality control."""
    settings = RunConfig.load(config, changes or ())
    with step_files() as files, progress.task("report"):
        known = json_object(Path(files.input(lineage)).read_text(encoding="utf-8"), lineage) if lineage else {}
        manifest, held_out = (Path(files.input(each)) for each in (screen, holdout))
        labels, known_truth = (Path(files.input(each)) if each else None for each in (holdout_labels, truth))
        step.run(settings, manifest, held_out, labels, known_truth, uri, Path(files.output(out)), known)


if __name__ == "__main__":
    run_command(report)
