"""python -m pipelines.studies.protocols: the organisers' protocols with the object store of the AWS environment variables."""

import datetime
import os
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from components.core.command import cancel_on_signals, run_command
from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.studies.protocols.run import RESULTS, measure
from pipelines.studies.protocols.splits import asked_protocols


def protocols(
    config: Annotated[str, Option(help="a shipped configuration's name, or a YAML file")],
    out: Annotated[Path, Option(help="folder of protocols.json")],
    screen: Annotated[
        str | None, Option(help="folder of a screen, or s3://BUCKET/PREFIX; without one, one is simulated")
    ] = None,
    protocol: Annotated[str, Option(help="batch, random or both")] = "both",
    repeats: Annotated[int, Option(help="deals of each protocol")] = 3,
    backbones: Annotated[int, Option(help="how many of the configured networks predict together")] = 1,
    workers: Annotated[int, Option(help="processes side by side; 0: one a core, or one where there is a GPU")] = 0,
    code_version: Annotated[str, Option(help="for protocols.json")] = "unknown",
    set: Annotated[list[str], Option(help="KEY=VALUE, changes the configuration")] = [],  # noqa: B006
) -> None:
    """Measures a configuration by the challenge organisers' two protocols."""
    cancel_on_signals("run the same command again to go on from the finished tasks")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which inherit it before they load torch
    if workers < 0:
        raise InputError(f"--workers {workers}: a number from 0 is expected")
    lineage = {
        "code_version": code_version,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    console = Console()
    results = measure(
        RunConfig.load(config, set),
        asked_protocols(protocol),
        repeats,
        backbones,
        screen,
        out,
        workers or usual_workers(),
        lineage,
        console,
    )
    console.print(results.table())
    console.print(f"results: {(out / RESULTS).resolve()}", soft_wrap=True, highlight=False)


def usual_workers() -> int:
    """One a core; one alone where there is a GPU, which a second would only share."""
    return 1 if any(Path("/dev").glob("nvidia[0-9]*")) else os.cpu_count() or 1


if __name__ == "__main__":
    run_command(protocols)
