"""`cellsignal plan`: reads configuration, screen and rates, plans, prints. Starts nothing; needs neither torch nor network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.plan.estimate import make_plan
from pipelines.plan.machines import read_machines
from pipelines.plan.measured_run import read_measured_run
from pipelines.plan.output import print_plan
from pipelines.plan.plan_file import write_plan
from pipelines.plan.screens import screen_wells

USUAL_GPUS = (1, 4, 8, 20)


def run_plan(
    config: RunConfig,
    screen: str | None,
    gpus: Sequence[str],
    gpu: str | None,
    throughput: Path | None,
    measured: Path | None,
    json_file: Path | None,
    console: Console,
) -> None:
    """Plans a run.

    Args:
        config: the run.
        screen: folder of a screen in the Kaggle layout; None for the sizes under `simulate`.
        gpus: numbers of GPUs, each an item or separated by commas; empty for the usual ones and as many as help.
        gpu: the kind; None for the one in the rates' file.
        throughput: YAML with rates, pods and prices in place of the shipped ones.
        measured: folder of a finished run, whose rates are taken.
        json_file: also gets the plan.
        console: where it is printed.

    Raises:
        InputError: names the option, file or field, and what to do.
    """
    counts = _counts(gpus)
    machines = read_machines(throughput, gpu)
    run = None if measured is None else read_measured_run(measured)
    if screen is not None and not Path(screen).is_dir():
        where = "a local folder is expected; its tables are enough" if "://" in screen else "no such folder"
        raise InputError(f"--screen {screen}: {where}")
    plan = make_plan(config, screen_wells(config, None if screen is None else Path(screen)), machines, run)
    for count in counts:
        if count < plan.pod_gpus:
            raise InputError(
                f"--gpus {count}: a task takes {plan.pod_gpus} GPUs (compute.processes); give at least those"
            )
    usual = (plan.pod_gpus, *(count for count in USUAL_GPUS if count > plan.pod_gpus), plan.enough)
    counts = counts or sorted(set(usual))
    if json_file is not None:
        write_plan(json_file, plan, counts)
    print_plan(plan, counts, console)


def _counts(given: Sequence[str]) -> list[int]:
    counts: set[int] = set()
    for text in (part.strip() for item in given for part in item.split(",")):
        if not text.isdecimal() or int(text) < 1:
            raise InputError(
                f"--gpus {text}: expected a number of GPUs from 1, or several with commas, for example 1,4,8"
            )
        counts.add(int(text))
    return sorted(counts)
