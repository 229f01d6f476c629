"""The tables of `cellsignal store`. Rich; what is in them comes from components.core.storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from rich.box import SIMPLE_HEAD
from rich.table import Table

from components.core.storage.claims import Claims
from components.core.storage.garbage import Contents, Garbage
from components.core.storage.run_summaries import RunSummary

LONGEST_PATH = 26
RECENT = timedelta(hours=1)
"""A run that was active within this time may still be running."""


def garbage_table(garbage: Sequence[Garbage]) -> Table:
    """What would go, by kind."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("kind", no_wrap=True)
    for name in ("how many", "objects", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for kind in dict.fromkeys(item.kind for item in garbage):
        items = [item for item in garbage if item.kind == kind]
        ages = sorted(now - item.newest for item in items)
        table.add_row(f"{kind}s", *_sums(items), _ages(ages[0], ages[-1]))
    table.add_section()
    table.add_row("together", *_sums(garbage), "", style="bold")
    return table


def amount(garbage: Sequence[Garbage]) -> str:
    """How much, for a question."""
    objects = sum(item.objects for item in garbage)
    return f"{objects:,} object{'s' if objects != 1 else ''}, {shown_size(sum(item.size for item in garbage))}"


def kept_line(contents: Contents, claims: Claims, garbage: Sequence[Garbage]) -> str:
    """What stays."""
    piles = [*contents.plates.values(), *contents.finished.values(), *contents.checkpoints.values()]
    size = sum(pile.size for pile in piles)
    size -= sum(item.size for item in garbage if item.kind not in ("plate lead", "unfinished upload"))
    runs = len(claims.runs)
    whose = f"{runs} recorded run{'s' if runs != 1 else ''}" if runs else "no run is recorded here"
    others = f"; {contents.others:,} objects of another form are left alone" if contents.others else ""
    return f"kept: {shown_size(size)} ({whose}){others}"


def waiting_line(waiting: Sequence[Garbage], older_than: str) -> str:
    """What no record names but is too young to go; empty where there is none."""
    if not waiting:
        return ""
    return (
        f"of that, no record names {amount(waiting)}, which may belong to runs in progress (younger than {older_than})"
    )


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """Runs, one a line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # A key usually begins with the name; a terminal has room for little more.
    named = any(not run.key.startswith(run.name) for run in runs)
    counted = any(run.alone is not None for run in runs)
    predicting = any(run.model for run in runs)
    table.add_column("run", no_wrap=True)
    if predicting:
        table.add_column("predicted by", no_wrap=True)
    if named:
        table.add_column("name", no_wrap=True)
    table.add_column("started (UTC)", no_wrap=True)
    table.add_column("screen", overflow="fold", min_width=8)
    table.add_column("folds", justify="right", no_wrap=True)
    table.add_column("idle for", justify="right", no_wrap=True)
    if counted:
        table.add_column("alone", justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for run in runs:
        name = [*([run.model[:12]] if predicting else []), *([run.name] if named else [])]
        alone = [shown_size(run.alone or 0)] if counted else []
        screen = _end_of(run.screen) if run.name else "(record not whole)"
        folds = f"{run.folds}/{run.of_folds}" if run.of_folds else str(run.folds)
        table.add_row(
            run.key, *name, run.started[:16].replace("T", " "), screen, folds, shown_age(now - run.active), *alone
        )
    return table


def users_lines(chosen: Sequence[RunSummary], runs: Iterable[RunSummary]) -> list[str]:
    """What to think of before these runs are forgotten: some may still be running, others start from them."""
    lines = []
    now = datetime.now(UTC)
    going = {run.key for run in chosen}
    for run in chosen:
        if now - run.active < RECENT:
            lines.append(
                f"{run.key} was active {shown_age(now - run.active)} ago; if it is still running, leave it alone"
            )
        for other in runs:
            if other.init_from.rsplit("/", 1)[-1] == run.key and other.key not in going:
                lines.append(f"{other.key} starts from its weights (init_from), and could not be run again")
    return lines


def shown_size(size: int) -> str:
    """Bytes with a decimal unit."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def shown_age(age: timedelta) -> str:
    """The largest unit of an age: 41 days."""
    seconds = max(0.0, age.total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (unit == "minute" and seconds >= length):
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "a moment"


def _ages(youngest: timedelta, oldest: timedelta) -> str:
    low, high = shown_age(youngest), shown_age(oldest)
    if low == high:
        return low
    return f"{low.removesuffix(' days') if high.endswith(' days') else low} to {high}"


def _end_of(path: str) -> str:
    """The end of a long path, which tells more than its beginning."""
    return path if len(path) <= LONGEST_PATH else f"…{path[1 - LONGEST_PATH :]}"


def _sums(items: Sequence[Garbage]) -> tuple[str, str, str]:
    return f"{len(items):,}", f"{sum(i.objects for i in items):,}", shown_size(sum(i.size for i in items))
