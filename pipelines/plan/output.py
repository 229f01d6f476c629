"""`cellsignal plan`: a plan as tables of at most 100 columns, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from components.core.command import number_items
from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.screen.plane_header import bits, pixels
from pipelines.dag import STEPS
from pipelines.plan.estimate import RunPlan, TaskEstimate
from pipelines.plan.rates import read_rates, weakest
from pipelines.plan.work import packed_bytes
from pipelines.run.display import duration

WIDTH = 100
USUAL_GPUS = (1, 4, 8, 20)
SCHEMA = 3


def run_plan(
    config: RunConfig,
    screen: Path | None,
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
    if screen is not None and not screen.is_dir():
        raise InputError(f"--screen {screen}: no such folder")
    least = max(1, config.compute.processes)
    if counts and counts[0] < least:
        raise InputError(f"--gpus {counts[0]}: a task takes {least} GPUs (compute.processes); give at least those")
    plan = RunPlan(config, screen, read_rates(throughput, gpu), measured)
    counts = counts or sorted({least, *(count for count in USUAL_GPUS if count > least), plan.enough_gpus})
    if as_json:
        print(json.dumps(plan_data(plan, counts), indent=1))  # noqa: T201
        return
    if not console.is_terminal:
        console.width = WIDTH
    for part in (_summary(plan), _steps(plan), _wall(plan, counts), Text(), *_notes(plan)):
        console.print(part, highlight=False)


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
            "assumed": plan.wells.assumed,
            "channels": len(plan.config.screen.channel_names),
            "image_shape": list(plan.config.screen.image_shape),
            "dtype": plan.wells.dtype,
            "packed_bytes": round(packed_bytes(plan.wells, plan.rates)),
        },
        "gpu": plan.rates.gpu,
        "basis": plan.basis,
        "gpus_of_a_pod": plan.pod_gpus,
        "gpu_hours": plan.gpu_hours,
        "gpu_hours_range": list(plan.gpu_hours_range),
        "networks": [asdict(size) for size in plan.sizes.values()],
        "wall": [{"gpus": count, "hours": plan.seconds_on(count) / 3600} for count in gpus],
        "enough_gpus": plan.enough_gpus,
        "critical_path": [{"task": each.task.name, "hours": each.seconds / 3600} for each in plan.critical_path],
        "stored_bytes": round(plan.stored),
        "cost": {"currency": plan.rates.prices.currency, "prices": plan.rates.prices.note, **plan.cost},
        "warnings": plan.warnings,
        "tasks": [
            {
                **{key: getattr(each.task, key) for key in ("step", "fold", "cell_type", "backbone", "needs")},
                "seconds": each.seconds,
                "basis": each.basis,
                "passes": {name: asdict(passes) for name, passes in each.work.items()},
                "stored_bytes": round(each.stored),
            }
            for each in plan.tasks
        ],
    }


def _summary(plan: RunPlan) -> Text:
    wells, cost, prices = plan.wells, plan.cost, plan.rates.prices
    low, high = plan.gpu_hours_range
    shortest = sum(each.seconds for each in plan.critical_path)
    path = ", ".join(f"{each.task.name} {duration(each.seconds)}" for each in plan.critical_path)
    packed = decimal(round(packed_bytes(wells, plan.rates)))
    lines = {
        "sizes": f"{wells.source}; {decimal(wells.pixel_bytes)} of pixels, {packed} packed",
        "rates": f"the run in {plan.measured}" if plan.measured else f"one {plan.rates.gpu}, {plan.basis}",
        "networks": "; ".join(_network(plan, name) for name in plan.sizes),
        "range": f"{low:,.1f} to {high:,.1f} GPU-hours: rates may be wrong by a factor of {high / plan.gpu_hours:.3g}",
        "path": f"{duration(shortest)} at least: {path}",
        "cost": f"{cost['total']:,.2f} {prices.currency}, {cost['total_spot']:,.2f} on spot GPUs ({prices.note}): "
        f"{plan.gpu_hours:,.1f} GPU-hours at {plan.rates.gpus[plan.rates.gpu].price_per_hour:g}, "
        f"{plan.core_hours:,.1f} core-hours at {prices.cpu_core_hour:g}, {decimal(round(plan.stored))} stored for a month; "
        "the same for any number of GPUs, because pods release theirs",
    }
    return Text.assemble(
        (f"Plan of {plan.config.name}", "bold"),
        f": {len(wells.experiments)} experiments, {wells.experiments.plates.sum()} plates, {wells.count():,} wells, "
        f"{wells.sites:,} sites of {len(plan.config.screen.channel_names)} channels, "
        f"{pixels(plan.config.screen.image_shape)}, {bits(wells.dtype)} bit",
        *(part for name, line in lines.items() for part in ((f"\n  {name}  ", "bold"), line)),
    )


def _network(plan: RunPlan, name: str) -> str:
    """A network's size, and its rates unless those of a finished run are used."""
    size = plan.sizes[name]
    text = f"{name} {size.macs / 1e9:.3g} GMAC a site, {size.parameters / 1e6:.3g} M parameters"
    if plan.measured:
        return text
    training, forward, basis = plan.site_seconds(name)
    return f"{text}, {1 / training:,.0f} sites/s in training, {1 / forward:,.0f} forward ({basis})"


def _steps(plan: RunPlan) -> Table:
    table = _table("Work by step", "step", "pods", "GPU h", "a pod takes", "million passes", "stored", "basis")

    def add(name: str, found: Sequence[TaskEstimate], takes: str, basis: str, style: str | None = None) -> None:
        hours = plan.pod_gpus * sum(each.seconds for each in found if each.task.on_gpu) / 3600
        passes = sum(work.training + work.forward for each in found for work in each.work.values())
        stored = decimal(round(sum(each.stored for each in found)))
        table.add_row(name, str(len(found)), f"{hours:,.2f}", takes, f"{passes / 1e6:,.2f}", stored, basis, style=style)

    for step in STEPS:
        if found := [each for each in plan.tasks if each.task.step == step]:
            takes = dict.fromkeys(duration(pick(each.seconds for each in found)) for pick in (min, max))
            add(step, found, " - ".join(takes), weakest(each.basis for each in found))
    table.add_section()
    add("total", plan.tasks, "", "", "bold")
    return table


def _wall(plan: RunPlan, gpus: Sequence[int]) -> Table:
    table = _table("Wall time", "GPUs", "the run takes", "GPUs at work", "")
    for count in gpus:
        seconds = plan.seconds_on(count)
        remark = "more do not help" if count == plan.enough_gpus else ""
        table.add_row(str(count), duration(seconds), f"{plan.gpu_hours * 3600 / (count * seconds):.0%}", remark)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        left = number == 0 or name in ("basis", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _notes(plan: RunPlan) -> Iterator[Text]:
    for text in plan.warnings:
        yield Text.assemble(("warning: ", "bold yellow"), text)
    notes = [f"assumed of the screen: {plan.wells.assumed}"] if plan.wells.assumed else []
    notes += [
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
    if plan.pod_gpus > 1:
        notes.append(f"{plan.pod_gpus} GPUs of a pod are assumed to be {plan.pod_gpus} times as fast")
    yield from (Text.assemble(("note: ", "bold"), text) for text in notes)
