"""`cellsignal plan`: a plan as tables of at most 100 columns, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.core.command import number_items
from components.core.config import CHANNELS, RunConfig
from components.core.errors import InputError
from pipelines.dag import STEPS
from pipelines.plan.estimate import RunPlan, TaskEstimate, make_plan
from pipelines.plan.rates import read_rates, weakest

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
    plan = make_plan(config, Path(screen) if screen else None, read_rates(throughput, gpu), measured)
    for count in counts:
        if count < plan.pod_gpus:
            raise InputError(
                f"--gpus {count}: a task takes {plan.pod_gpus} GPUs (compute.processes); give at least those"
            )
    usual = (plan.pod_gpus, *(count for count in USUAL_GPUS if count > plan.pod_gpus), plan.enough_gpus)
    counts = counts or sorted({*usual})
    if as_json:
        print(json.dumps(plan_data(plan, counts), indent=1))  # noqa: T201
        return
    if not console.is_terminal:
        console.width = WIDTH
    for part in (
        _summary(plan),
        _steps(plan),
        _networks(plan),
        _wall(plan, counts),
        _path(plan),
        _cost(plan),
        Text(),
        *_notes(plan),
    ):
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
            "plates": plan.wells.plates,
            "wells": plan.wells.count(),
            "sites": plan.wells.count() * plan.wells.sites,
            "packed_bytes": round(plan.packed_bytes),
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
    wells, size = plan.wells, plan.config.screen.image_size
    sites = wells.count() * wells.sites
    low, high = plan.gpu_hours / plan.factor, plan.gpu_hours * plan.factor
    rates = f"the run in {plan.run.folder}" if plan.run else f"one {plan.rates.gpu}, {plan.basis}"
    return Text.assemble(
        (f"Plan of {plan.config.name}", "bold"),
        f": {len(wells.experiments)} experiments, {wells.plates} plates, {wells.count():,} wells, "
        f"{sites:,} sites of {size} pixels\n",
        ("  sizes  ", "bold"),
        f"{wells.source}; {_bytes(sites * len(CHANNELS) * size**2)} of pixels, {_bytes(plan.packed_bytes)} packed\n",
        ("  rates  ", "bold"),
        f"{rates}\n",
        ("  range  ", "bold"),
        f"{_number(low)} to {_number(high)} GPU-hours: rates may be off by a factor of {plan.factor:.3g} either way",
    )


def _steps(plan: RunPlan) -> Table:
    table = _table("Work by step", "step", "pods", "GPU h", "a pod takes", "passes", "stored", "basis")
    for step in STEPS:
        found = [estimate for estimate in plan.tasks if estimate.task.step == step]
        if found:
            table.add_row(step, *_step_cells(found), weakest([estimate.basis for estimate in found]))
    table.add_section()
    total = _step_cells(plan.tasks)
    table.add_row("total", *total[:2], "", *total[3:], "", style="bold")
    return table


def _step_cells(found: Sequence[TaskEstimate]) -> list[str]:
    seconds = [estimate.seconds for estimate in found]
    gpu_hours = sum(estimate.gpus * estimate.seconds for estimate in found) / 3600
    passes = sum(p.training + p.forward for estimate in found for p in estimate.work.values())
    low, high = _duration(min(seconds)), _duration(max(seconds))
    return [
        str(len(found)),
        _number(gpu_hours) if gpu_hours else "-",
        low if low == high else f"{low} - {high}",
        _quantity(passes),
        _bytes(sum(estimate.stored for estimate in found)),
    ]


def _networks(plan: RunPlan) -> Table:
    table = _table("Networks, one site", "backbone", "GMAC forward", "parameters", "training/s", "forward/s", "basis")
    for name, size in plan.sizes.items():
        rates = [plan.rates.pass_seconds(size, plan.config.screen.image_size, kind) for kind in ("training", "forward")]
        speed = ["-", "-", "measured"] if plan.run else [*(f"{1 / seconds:,.0f}" for seconds, _ in rates), rates[0][1]]
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
    table = _table(
        f"Cost, {prices.currency} ({prices.note})", "item", "on demand", f"spot x {prices.spot_factor:g}", "for"
    )
    price = plan.rates.gpus[gpu].price_per_hour
    for name, spot, text in (
        ("gpu", "gpu_spot", f"{plan.gpu_hours:,.1f} hours of {gpu} at {price:g}"),
        ("cpu", "cpu", f"{plan.core_hours:,.1f} core-hours of the steps without a GPU"),
        ("storage_month", "storage_month", f"{_bytes(plan.stored_bytes)} for a month"),
        ("total", "total_spot", "the same for any number of GPUs: pods give theirs back"),
    ):
        table.add_row(name.replace("_month", ""), _number(cost[name]), _number(cost[spot]), text)
    return table


def _notes(plan: RunPlan) -> list[Text]:
    notes = []
    if plan.basis == "assumed":
        notes.append(
            f"assumed: no rate was measured on {plan.rates.gpu}; those of another GPU are scaled by memory bandwidth. "
            "Give --measured RUN_DIR, or your own rates in a --throughput file"
        )
    if any(estimate.basis == "scaled" for estimate in plan.tasks):
        notes.append("scaled: measured on another network, image size, precision or number of cores")
    if plan.run:
        notes.append("a run's rates are those of its machine, with whatever else ran on it")
    notes.append(f"CPU rates: {plan.rates.cpu.source}; a pod takes {plan.rates.pods.start_s:g} s to start (assumed)")
    if plan.pod_gpus > 1:
        notes.append(f"{plan.pod_gpus} GPUs of a pod are assumed to be {plan.pod_gpus} times as fast")
    notes.append("a packed screen is not packed again: normalize then takes seconds")
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


def _scaled(value: float, units: Sequence[tuple[str, float]], unit: str) -> str:
    for name, factor in units:
        if value >= factor:
            return f"{value / factor:.3g} {name}" if value < 999.5 * factor else f"{value / factor:,.0f} {name}"
    return f"{value:.0f}{unit}" if value else "-"


def _bytes(size: float) -> str:
    """With a decimal unit."""
    return _scaled(size, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), " B")


def _quantity(count: float) -> str:
    """In thousands or millions."""
    return _scaled(count, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "")
