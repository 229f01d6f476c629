"""`cellsignal plan`: a plan as tables of at most 100 columns, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.core.command import number_items
from components.core.config import RunConfig
from components.core.errors import InputError
from pipelines.dag import STEPS
from pipelines.plan.estimate import RunPlan, TaskEstimate, make_plan, pod_gpus
from pipelines.plan.rates import read_rates, weakest
from pipelines.plan.work import packed_bytes

WIDTH = 100
USUAL_GPUS = (1, 4, 8, 20)
SCHEMA = 2


def run_plan(
    config: RunConfig,
    screen: str | None,
    gpus: Sequence[str],
    gpu: str | None,
    throughput: Path | None,
    measured: Path | None,
    as_json: bool,
    console: Console,
) -> None:
    """Plans a run and prints the plan.

    Args:
        config: the run.
        screen: folder of a screen; None for the sizes under `simulate`.
        gpus: values of --gpus; empty for the usual numbers.
        gpu: the kind; None for the one in the rates.
        throughput: YAML with fields over the shipped rates.
        measured: folder of a finished run, whose rates are used.
        as_json: print one JSON document instead of tables.
        console: where tables are printed.

    Raises:
        InputError: names the option, file or field, and what to do.
    """
    counts = sorted({*number_items("--gpus", gpus, 1)})
    if screen is not None and not Path(screen).is_dir():
        reason = "a local folder is expected; its tables are enough" if "://" in screen else "no such folder"
        raise InputError(f"--screen {screen}: {reason}")
    least = pod_gpus(config)
    if counts and counts[0] < least:
        raise InputError(f"--gpus {counts[0]}: a task takes {least} GPUs (compute.processes); give at least those")
    plan = make_plan(config, Path(screen) if screen else None, read_rates(throughput, gpu), measured)
    counts = counts or sorted({least, *(count for count in USUAL_GPUS if count > least), plan.enough_gpus})
    if as_json:
        print(json.dumps(plan_data(plan, counts), indent=1))  # noqa: T201
        return
    if not console.is_terminal:
        console.width = WIDTH
    tables = _steps(plan), _networks(plan), _wall(plan, counts), _path(plan), _cost(plan)
    for part in (_summary(plan), *tables, Text(), *_notes(plan)):
        console.print(part, width=min(WIDTH, console.width), highlight=False)


def plan_data(plan: RunPlan, gpus: Sequence[int]) -> dict[str, Any]:
    """The plan as plain data; units are in the keys.

    Args:
        plan: the plan.
        gpus: numbers of GPUs to schedule on.
    """
    return {
        "schema": SCHEMA,
        "config": plan.config.name,
        "screen": {
            "source": plan.wells.source,
            "experiments": len(plan.wells.experiments),
            "plates": int(plan.wells.experiments.plates.sum()),
            "wells": plan.wells.count(),
            "sites": plan.wells.sites,
            "packed_bytes": round(packed_bytes(plan.wells, plan.rates)),
        },
        "gpu": plan.rates.gpu,
        "basis": plan.basis,
        "gpus_of_a_pod": plan.pod_gpus,
        "gpu_hours": plan.gpu_hours,
        "gpu_hours_range": [plan.gpu_hours / plan.factor, plan.gpu_hours * plan.factor],
        "networks": [asdict(size) for size in plan.sizes.values()],
        "wall": [
            {"gpus": count, "hours": (done := plan.on(count)).seconds / 3600, "gpus_at_work": done.busy}
            for count in gpus
        ],
        "enough_gpus": plan.enough_gpus,
        "critical_path": [{"task": plan.dag[n].name, "hours": plan.seconds[n] / 3600} for n in plan.critical_path],
        "stored_bytes": round(plan.stored_bytes),
        "cost": {"currency": plan.rates.prices.currency, "prices": plan.rates.prices.note, **plan.cost},
        "warnings": plan.warnings,
        "tasks": [
            {
                **{key: getattr(e.task, key) for key in ("step", "fold", "cell_type", "backbone", "needs")},
                "seconds": e.seconds,
                "computing_seconds": e.computing,
                "basis": e.basis,
                "passes": {name: asdict(passes) for name, passes in e.work.items()},
                "stored_bytes": round(e.stored),
            }
            for e in plan.tasks
        ],
    }


def _summary(plan: RunPlan) -> Text:
    wells = plan.wells
    low, high = plan.gpu_hours / plan.factor, plan.gpu_hours * plan.factor
    rates = f"the run in {plan.run.folder}" if plan.run else f"one {plan.rates.gpu}, {plan.basis}"
    return Text.assemble(
        (f"Plan of {plan.config.name}", "bold"),
        f": {len(wells.experiments)} experiments, {wells.experiments.plates.sum()} plates, {wells.count():,} wells, "
        f"{wells.sites:,} sites of {plan.config.screen.image_size} pixels\n",
        ("  sizes  ", "bold"),
        f"{wells.source}; {_bytes(wells.pixel_bytes)} of pixels, {_bytes(packed_bytes(wells, plan.rates))} packed\n",
        ("  rates  ", "bold"),
        f"{rates}\n",
        ("  range  ", "bold"),
        f"{_number(low)} to {_number(high)} GPU-hours: rates may be off by a factor of {plan.factor:.3g} either way",
    )


def _steps(plan: RunPlan) -> Table:
    table = _table("Work by step", "step", "pods", "GPU h", "a pod takes", "passes", "stored", "basis")

    def add(name: str, found: Sequence[TaskEstimate], basis: str, style: str | None = None) -> None:
        hours = sum(each.gpus * each.seconds for each in found) / 3600
        passes = sum(work.training + work.forward for each in found for work in each.work.values())
        durations = dict.fromkeys(_duration(pick(each.seconds for each in found)) for pick in (min, max))
        stored = _bytes(sum(each.stored for each in found))
        takes = " - ".join(durations) if basis else ""
        table.add_row(
            name,
            str(len(found)),
            _number(hours) if hours else "-",
            takes,
            _quantity(passes),
            stored,
            basis,
            style=style,
        )

    for step in STEPS:
        if found := [each for each in plan.tasks if each.task.step == step]:
            add(step, found, weakest(each.basis for each in found))
    table.add_section()
    add("total", plan.tasks, "", "bold")
    return table


def _networks(plan: RunPlan) -> Table:
    table = _table("Networks, one site", "backbone", "GMAC forward", "parameters", "training/s", "forward/s", "basis")
    for name, size in plan.sizes.items():
        speed = ["-", "-", "measured"]
        if plan.run is None:
            training, basis = plan.rates.pass_seconds(size, plan.config.screen.image_size, "training")
            forward, _ = plan.rates.pass_seconds(size, plan.config.screen.image_size, "forward")
            speed = [f"{1 / training:,.0f}", f"{1 / forward:,.0f}", basis]
        table.add_row(name, f"{size.macs / 1e9:.3g}", _quantity(size.parameters), *speed)
    return table


def _wall(plan: RunPlan, gpus: Sequence[int]) -> Table:
    table = _table("Wall time", "GPUs", "the run takes", "no schedule beats", "GPUs at work", "")
    for count in gpus:
        done = plan.on(count)
        least = max(plan.shortest, plan.gpu_hours * 3600 / count)
        remark = "more do not help" if count == plan.enough_gpus else ""
        table.add_row(str(count), _duration(done.seconds), _duration(least), f"{done.busy:.0%}", remark)
    return table


def _path(plan: RunPlan) -> Table:
    table = _table(f"Critical path, {_duration(plan.shortest)}", "task", "takes", "ends after")
    after = 0.0
    for number in plan.critical_path:
        after += plan.seconds[number]
        table.add_row(plan.dag[number].name, _duration(plan.seconds[number]), _duration(after))
    return table


def _cost(plan: RunPlan) -> Table:
    cost, prices, gpu = plan.cost, plan.rates.prices, plan.rates.gpu
    title = f"Cost, {prices.currency} ({prices.note})"
    table = _table(title, "item", "on demand", f"spot x {prices.spot_factor:g}", "for")
    for name, spot, text in (
        ("gpu", "gpu_spot", f"{plan.gpu_hours:,.1f} hours of {gpu} at {plan.rates.gpus[gpu].price_per_hour:g}"),
        ("cpu", "cpu", f"{plan.core_hours:,.1f} core-hours of the steps without a GPU"),
        ("storage_month", "storage_month", f"{_bytes(plan.stored_bytes)} for a month"),
        ("total", "total_spot", "the same for any number of GPUs: pods release theirs"),
    ):
        table.add_row(name.replace("_month", ""), _number(cost[name]), _number(cost[spot]), text)
    return table


def _notes(plan: RunPlan) -> list[Text]:
    notes = [
        f"CPU rates: {plan.rates.cpu.source}; a pod takes {plan.rates.pods.start_s:g} s to start (assumed)",
        "a packed screen is not packed again: normalize then takes seconds",
    ]
    if plan.basis == "assumed":
        notes.append(
            f"assumed: no rate was measured on {plan.rates.gpu}; those of another GPU are scaled by memory bandwidth. "
            "Give --measured RUN_DIR, or your own rates in a --throughput file"
        )
    if any(estimate.basis == "scaled" for estimate in plan.tasks):
        notes.append("scaled: measured on another network, image size, precision or number of cores")
    if plan.run:
        notes.append("a run's rates are those of its machine under the load of that time")
    if plan.pod_gpus > 1:
        notes.append(f"{plan.pod_gpus} GPUs of a pod are assumed to be {plan.pod_gpus} times as fast")
    return [
        *(Text.assemble(("warning: ", "bold yellow"), text) for text in plan.warnings),
        *(Text.assemble(("note: ", "bold"), text) for text in notes),
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1, 0, 0), header_style="dim",
    )  # fmt: skip
    for number, name in enumerate(columns):
        left = number == 0 or name in ("basis", "for", "")
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=number == 0)
    return table


def _number(value: float) -> str:
    """Three digits at most before a thousand."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    """In hours, minutes or seconds."""
    if seconds >= 3600:
        return f"{_number(seconds / 3600)} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _bytes(size: float) -> str:
    """With a decimal unit."""
    return _scaled(size, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}, " B")


def _quantity(count: float) -> str:
    """In thousands, millions or billions."""
    return _scaled(count, {"G": 1e9, "M": 1e6, "k": 1e3}, "")


def _scaled(value: float, units: Mapping[str, float], unit: str) -> str:
    for name, factor in units.items():
        if value >= factor:
            return f"{value / factor:.3g} {name}" if value < 999.5 * factor else f"{value / factor:,.0f} {name}"
    return f"{value:.0f}{unit}" if value else "-"
