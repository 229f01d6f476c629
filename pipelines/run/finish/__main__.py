"""python -m pipelines.run.finish: ends a run with the object store at an address."""

import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from components.core.command import cancel_on_signals, run_command
from components.core.storage.opening import open_store
from pipelines.run.finish.run import finish


def command(
    store: Annotated[str, Option(help="s3://BUCKET[/PREFIX] or file:///FOLDER of the run's plates")],
    run: Annotated[str, Option(help="the run's key")],
    quorum: Annotated[int, Option(help="folds that every cell type must have")],
    out: Annotated[Path, Option(help="folder of the results")],
    truth: Annotated[Path | None, Option(help="labels of the unlabelled wells, for the report's scoring alone")] = None,
    code_version: Annotated[str, Option(help="for lineage.json")] = "unknown",
) -> None:
    """Ends a run from the folds that are finished: ensemble, assign, report."""
    cancel_on_signals("run the same command again")
    connected = open_store(store)
    connected.check()
    finish(connected, run, quorum, out, truth, code_version, Console(file=sys.stdout))


if __name__ == "__main__":
    run_command(command)
