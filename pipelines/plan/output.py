"""A plan for people: tables of at most 100 columns. Rich; the numbers are estimate.py's."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.core.config import CHANNELS
from pipelines.plan.comparison import StepComparison
from pipelines.plan.dag import STEPS
from pipelines.plan.estimate import RunPlan, TaskEstimate, basis_of
from pipelines.plan.speeds import BFLOAT16, MEASURED, SCALED, GpuSpeed, element_bytes, weakest
from pipelines.plan.transfers import Transfer

WIDTH = 100


def print_plan(plan: RunPlan, gpus: Sequence[int], console: Console) -> None:
    """Prints everything.

    Args:
        plan: of a run.
        gpus: numbers of GPUs to schedule on.
        console: where to.
    """
    if not console.is_terminal:
        console.width = WIDTH  # a file or pipe has none of its own
    for part in (
        _head(plan),
        _steps(plan),
        _networks(plan),
        _wall(plan, gpus),
        _path(plan),
        _cost(plan),
        *([_compared(plan.compared)] if plan.compared else []),
        Text(),
        *_remarks(plan),
    ):
        console.print(part, width=min(WIDTH, console.width), highlight=False)


def _head(plan: RunPlan) -> Text:
    wells, config = plan.wells, plan.config
    plates = len(wells.screen.plates)
    count = len(wells.fold_W)
    raw = count * wells.sites * len(CHANNELS) * config.screen.image_size**2
    low, high = (plan.gpu_seconds / 3600 * factor for factor in (1 / plan.factor, plan.factor))
    return Text.assemble(
        (f"Plan of {config.name}", "bold"),
        f": {wells.experiments} experiments, {plates} plates, {count:,} wells, {count * wells.sites:,} sites of "
        f"{config.screen.image_size} pixels\n",
        ("  sizes  ", "bold"),
        f"{wells.source}; {bytes_text(raw)} of pixels, {bytes_text(plan.packed_bytes)} packed\n",
        ("  rates  ", "bold"),
        f"{plan.rates}\n",
        ("  range  ", "bold"),
        f"{hours_text(low)} to {hours_text(high)} GPU-hours: they may be off by a factor of {plan.factor:.3g} either way",
    )


def _steps(plan: RunPlan) -> Table:
    columns = ("step", "pods", "GPU h", "a pod takes", "passes", "read", "written", "requests", "rests on")
    table = _table("Work by step", *columns)
    table.padding = (0, 0, 0, 0)  # so that it fits into a terminal of 80 columns
    for step in STEPS:
        found = plan.of(step)
        if found:
            table.add_row(step, *_row(found), basis_of(found))
    cells = _row(plan.tasks)
    cells[2] = ""
    table.add_section()
    table.add_row("total", *cells, "", style="bold")
    return table


def _row(found: Sequence[TaskEstimate]) -> list[str]:
    hours = [estimate.seconds / 3600 for estimate in found]
    of_gpu = [estimate.gpus * estimate.seconds / 3600 for estimate in found if estimate.task.on_gpu]
    passes = sum(p.student + p.forward for estimate in found for p in estimate.passes)
    transfer = sum((estimate.transfer for estimate in found), Transfer())
    return [
        str(len(found)),
        hours_text(sum(of_gpu)) if of_gpu else "-",
        span_text(min(hours), max(hours)),
        count_text(passes) if passes else "-",
        bytes_text(transfer.read),
        bytes_text(transfer.written),
        count_text(transfer.gets + transfer.puts),
    ]


def _networks(plan: RunPlan) -> Table:
    columns = ("backbone", "GMAC forward", "training", "parameters", "training passes/s", "forward/s", "rests on")
    table = _table("Networks, one site", *columns)
    for name, cost in plan.costs.items():
        training, forward = plan.pass_seconds(name, "training"), plan.pass_seconds(name, "forward")
        table.add_row(
            name,
            f"{cost.forward_macs / 1e9:.3g}",
            f"{cost.train_macs / 1e9:.3g}",
            count_text(cost.parameters),
            f"{1 / training.value:,.0f}" if training.value else "-",
            f"{1 / forward.value:,.0f}" if forward.value else "-",
            weakest([training.basis, forward.basis]),
        )
    return table


def _wall(plan: RunPlan, gpus: Sequence[int]) -> Table:
    table = _table("Wall time", "GPUs", "the run takes", "no schedule beats", "GPUs at work", "reads on average", "")
    for count in gpus:
        done = plan.on(count)
        least = max(plan.shortest, plan.gpu_seconds / count)
        table.add_row(
            str(count),
            duration_text(done.seconds / 3600),
            duration_text(least / 3600),
            f"{done.busy:.0%}",
            f"{bytes_text(plan.transfer.read / done.seconds)}/s",
            "more do not help" if count == plan.enough else "",
        )
    return table


def _path(plan: RunPlan) -> Table:
    table = _table(f"Critical path, {duration_text(plan.shortest / 3600)}", "task", "takes", "ends after")
    after = 0.0
    for number in plan.critical_path:
        hours = plan.seconds[number] / 3600
        after += hours
        table.add_row(plan.dag[number].name, duration_text(hours), duration_text(after))
    return table


def _cost(plan: RunPlan) -> Table:
    cost, prices = plan.cost, plan.machines.prices
    table = _table(f"Cost, {prices.currency} ({prices.note})", "", "on demand", f"spot x {prices.spot_factor:g}", "of")
    hours, name = plan.gpu_seconds / 3600, plan.machines.gpu
    price = plan.machines.gpus[name].price_per_hour
    whose = f"hours of {name}" if isinstance(plan.speed, GpuSpeed) else f"hours of the run's machine, priced as {name}"
    table.add_row(
        "GPUs",
        _money(cost.gpu),
        _money(cost.gpu_spot),
        f"{hours:,.1f} {whose} at {price:g}",
    )
    table.add_row(
        "CPUs",
        _money(cost.cpu),
        _money(cost.cpu),
        f"{plan.core_seconds / 3600:,.1f} core-hours of the steps without a GPU",
    )
    stored = bytes_text(plan.transfer.written - plan.transfer.deleted)
    table.add_row("storage", _money(cost.storage_month), _money(cost.storage_month), f"{stored} for a month")
    requests = f"{count_text(plan.transfer.gets)} gets, {count_text(plan.transfer.puts)} puts"
    table.add_row("requests", _money(cost.requests), _money(cost.requests), requests)
    table.add_section()
    table.add_row(
        "total",
        _money(cost.total),
        _money(cost.total_spot),
        "the same for any number of GPUs: pods give theirs back",
        style="bold",
    )
    return table


def _remarks(plan: RunPlan) -> list[Text]:
    least, expected, most = plan.refresh_range()
    remarks = [("warning", text) for text in plan.warnings]
    if most > least:
        remarks.append(
            (
                "note",
                f"pseudo-label refreshes are not known before: {least:.0f} to {most:.0f} a task, {expected:.1f} on average taken",
            )
        )
    assumed = plan.machines.assumed
    precision = "bfloat16" if element_bytes(plan.config) == BFLOAT16 else "float32 (TF32)"
    if plan.basis != MEASURED and any("assumed" in e.compute.basis for e in plan.tasks if e.task.on_gpu):
        remarks.append(
            (
                "note",
                f"assumed: {assumed.compute_share:.0%} of the peak operations and {assumed.memory_share:.0%} of the bandwidth "
                f"in {plan.machines.gpu}'s data sheet, {precision}, as fits rates measured on an H200; nothing was measured on "
                "this GPU. Give --measured RUN_DIR or rates in a --throughput FILE",
            )
        )
    remarks.append(
        (
            "note",
            f"CPU rates: {plan.machines.cpu.source}; a pod takes {plan.machines.pods.start_s:g} s to start (assumed)",
        )
    )
    if not isinstance(plan.speed, GpuSpeed):
        remarks.append(("note", "a run's rates are of its machine, and of whatever else ran on it"))
    at_once, folds = plan.config.local.parallel_folds, len(plan.config.folds.trained)
    if folds > at_once:
        remarks.append(
            ("note", f"all {folds} folds run side by side here; local.parallel_folds ({at_once}) is not applied")
        )
    if plan.pod_gpus > 1:
        remarks.append(
            ("note", f"{plan.pod_gpus} GPUs of a pod are taken to be {plan.pod_gpus} times as fast (assumed)")
        )
    if any(estimate.compute.basis == SCALED for estimate in plan.tasks):
        remarks.append(("note", "scaled: measured on another network, image size, screen or number of cores"))
    remarks.append(
        ("note", "a screen that is packed already takes normalize seconds; each pod has a driver pod beside it in KFP")
    )
    return [
        Text.assemble((f"{kind}: ", "bold yellow" if kind == "warning" else "bold"), text) for kind, text in remarks
    ]


def _compared(compared: Sequence[StepComparison]) -> Table:
    columns = ("step", "tasks", "seconds taken", "planned", "planned/taken", "of a task")
    table = _table("The measured run, planned by its own rates", *columns)
    for step in compared:
        ratio = f"{step.planned / step.taken:.2f}"
        of_task = f"{step.least:.2f}-{step.most:.2f}"
        table.add_row(step.step, str(step.tasks), f"{step.taken:,.0f}", f"{step.planned:,.0f}", ratio, of_task)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    for number, name in enumerate(columns):
        left = number == 0 or name in ("rests on", "of", "", "what")
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=number == 0)
    return table


def hours_text(hours: float) -> str:
    """Three figures of it at most."""
    return f"{hours:,.0f}" if hours >= 99.95 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def duration_text(hours: float) -> str:
    """In hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours_text(hours)} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def span_text(least: float, most: float) -> str:
    """A range of hours, its unit once where both have the same."""
    low, high = duration_text(least), duration_text(most)
    if low == high:
        return low
    number, unit = low.split()
    return f"{number}-{high}" if high.endswith(f" {unit}") else f"{low}-{high}"


def bytes_text(size: float) -> str:
    """With the largest unit of 1000 that leaves a number above one."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 999.5 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size:.0f} B" if size else "-"


def count_text(count: float) -> str:
    """In thousands or millions."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 999.5 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count:.0f}"


def _money(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:,.2f}"
