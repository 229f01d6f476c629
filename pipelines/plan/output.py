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
from components.core.learning.network_size import NetworkSize
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
    """Plans a run and prints the plan; the arguments are those of the command line.

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
    for part in (_summary(plan), _steps(plan), _wall(plan, counts), Text(), *_notes(plan)):
        console.print(part, width=min(WIDTH, console.width), highlight=False)


def plan_data(plan: RunPlan, gpus: Sequence[int]) -> dict[str, Any]:
    """The plan on some numbers of GPUs as plain data; units are in the keys."""
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
        "gpus_of_a_pod": pod_gpus(plan.config),
        "gpu_hours": plan.gpu_hours,
        "gpu_hours_range": list(plan.gpu_hours_range),
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
    wells, cost, prices = plan.wells, plan.cost, plan.rates.prices
    low, high = plan.gpu_hours_range
    path = ", ".join(f"{plan.dag[n].name} {_duration(plan.seconds[n])}" for n in plan.critical_path)
    networks = (
        f"{name} {size.macs / 1e9:.3g} GMAC a site, {_quantity(size.parameters)} parameters{_speed(plan, size)}"
        for name, size in plan.sizes.items()
    )
    hourly = plan.rates.gpus[plan.rates.gpu].price_per_hour
    lines = {
        "sizes": f"{wells.source}; {_bytes(wells.pixel_bytes)} of pixels, {_bytes(packed_bytes(wells, plan.rates))} packed",
        "rates": f"the run in {plan.measured}" if plan.measured else f"one {plan.rates.gpu}, {plan.basis}",
        "networks": "; ".join(networks),
        "range": f"{_number(low)} to {_number(high)} GPU-hours: rates may be wrong by a factor of {high / plan.gpu_hours:.3g}",
        "path": f"{_duration(plan.shortest)} at least: {path}",
        "cost": f"{_number(cost['total'])} {prices.currency}, {_number(cost['total_spot'])} on spot GPUs ({prices.note}): "
        f"{plan.gpu_hours:,.1f} GPU-hours at {hourly:g}, {plan.core_hours:,.1f} core-hours at {prices.cpu_core_hour:g}, "
        f"{_bytes(plan.stored_bytes)} stored for a month; the same for any number of GPUs, because pods release theirs",
    }
    return Text.assemble(
        (f"Plan of {plan.config.name}", "bold"),
        f": {len(wells.experiments)} experiments, {wells.experiments.plates.sum()} plates, {wells.count():,} wells, "
        f"{wells.sites:,} sites of {plan.config.screen.image_size} pixels",
        *(part for name, line in lines.items() for part in ((f"\n  {name}  ", "bold"), line)),
    )


def _speed(plan: RunPlan, size: NetworkSize) -> str:
    """Rates of a network, unless those of a finished run are used."""
    if plan.measured:
        return ""
    training, basis = plan.rates.pass_seconds(size, plan.config.screen.image_size, "training")
    forward, _ = plan.rates.pass_seconds(size, plan.config.screen.image_size, "forward")
    return f", {1 / training:,.0f} sites/s in training, {1 / forward:,.0f} forward ({basis})"


def _steps(plan: RunPlan) -> Table:
    table = _table("Work by step", "step", "pods", "GPU h", "a pod takes", "passes", "stored", "basis")

    def add(name: str, found: Sequence[TaskEstimate], basis: str, style: str | None = None) -> None:
        hours = sum(each.gpus * each.seconds for each in found) / 3600
        passes = sum(work.training + work.forward for each in found for work in each.work.values())
        durations = dict.fromkeys(_duration(pick(each.seconds for each in found)) for pick in (min, max))
        stored = _bytes(sum(each.stored for each in found))
        takes = " - ".join(durations) if basis else ""
        hours_text = _number(hours) if hours else "-"
        table.add_row(name, str(len(found)), hours_text, takes, _quantity(passes), stored, basis, style=style)

    for step in STEPS:
        if found := [each for each in plan.tasks if each.task.step == step]:
            add(step, found, weakest(each.basis for each in found))
    table.add_section()
    add("total", plan.tasks, "", "bold")
    return table


def _wall(plan: RunPlan, gpus: Sequence[int]) -> Table:
    table = _table("Wall time", "GPUs", "the run takes", "no schedule beats", "GPUs at work", "")
    for count in gpus:
        done = plan.on(count)
        least = max(plan.shortest, plan.gpu_hours * 3600 / count)
        remark = "more do not help" if count == plan.enough_gpus else ""
        table.add_row(str(count), _duration(done.seconds), _duration(least), f"{done.busy:.0%}", remark)
    return table


def _notes(plan: RunPlan) -> list[Text]:
    gpus = pod_gpus(plan.config)
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
    if plan.measured:
        notes.append("a run's rates are those of its machine under the load of that time")
    if gpus > 1:
        notes.append(f"{gpus} GPUs of a pod are assumed to be {gpus} times as fast")
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
        left = number == 0 or name in ("basis", "")
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
