"""`python -m components.report --config C --screen F --holdout F --uri DIR --out DIR ...`: of a run or of new plates."""

from pathlib import Path
from typing import Annotated

from components.core import progress
from components.core.command import (
    AddressOption,
    ConfigOption,
    HoldoutOption,
    OutOption,
    ScreenOption,
    SetOption,
    run_command,
)
from components.core.config import RunConfig
from components.core.storage.artifacts import step_files
from components.report import step
from components.report.inputs import json_object


def report(
    config: ConfigOption,
    screen: ScreenOption,
    holdout: HoldoutOption,
    uri: Annotated[
        list[str], AddressOption(metavar="FOLDER", help="output of assign, path or s3://; once a cell type")
    ],
    out: OutOption,
    holdout_labels: Annotated[
        str | None,
        AddressOption(
            help="labels of the held-out wells, as normalize writes them, path or s3://; new plates have none"
        ),
    ] = None,
    truth: Annotated[
        str | None, AddressOption(help="labels of unlabelled or new wells, a CSV of id_code and label, path or s3://")
    ] = None,
    lineage: Annotated[str | None, AddressOption(help="lineage so far, JSON, path or s3://")] = None,
    changes: SetOption = [],  # noqa: B006
) -> None:
    """Writes predictions, metrics and the report of a run, or of new plates with their quality control."""
    settings = RunConfig.load(config, changes)
    with step_files() as files, progress.task("report"):
        known = json_object(Path(files.input(lineage)).read_text(encoding="utf-8"), lineage) if lineage else {}
        manifest, held_out = (Path(files.input(each)) for each in (screen, holdout))
        labels, known_truth = (Path(files.input(each)) if each else None for each in (holdout_labels, truth))
        step.run(settings, manifest, held_out, labels, known_truth, uri, Path(files.output(out)), known)


if __name__ == "__main__":
    run_command(report)
