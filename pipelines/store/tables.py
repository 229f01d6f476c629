"""The tables of `cellsignal store`. Rich; their content comes from components.core.storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from components.core.storage.garbage import StoredGroup
from components.core.storage.recorded_runs import RecordedRun

LONGEST_PATH = 26
RECENT = timedelta(hours=1)
"""A run that was active within this time may still be running."""


def garbage_table(garbage: Sequence[StoredGroup]) -> Table:
    """The garbage by kind."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("kind", no_wrap=True)
    for name in ("count", "objects", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for kind in dict.fromkeys(group.kind for group in garbage):
        groups = [group for group in garbage if group.kind == kind]
        ages = sorted(now - group.newest for group in groups)
        table.add_row(f"{kind}s", *_sums(groups), _ages(ages[0], ages[-1]))
    table.add_section()
    table.add_row("total", *_sums(garbage), "", style="bold")
    return table


def garbage_json(groups: Sequence[StoredGroup]) -> list[dict[str, Any]]:
    """The groups by kind, in plain values."""
    found = []
    for kind in dict.fromkeys(group.kind for group in groups):
        own = [group for group in groups if group.kind == kind]
        sums = {"objects": sum(group.objects for group in own), "bytes": sum(group.size for group in own)}
        found.append({"kind": kind, "count": len(own), **sums})
    return found


def amount(groups: Sequence[StoredGroup]) -> str:
    """Number of objects and their size."""
    objects = sum(group.objects for group in groups)
    return f"{objects:,} object{'s' if objects != 1 else ''}, {shown_size(sum(group.size for group in groups))}"


def kept_line(kept: Sequence[StoredGroup], runs: int) -> str:
    """What stays."""
    owners = f"{runs} recorded run{'s' if runs != 1 else ''}" if runs else "no run is recorded here"
    return f"kept: {shown_size(sum(group.size for group in kept))} ({owners})"


def sizes_alone(runs: Sequence[RecordedRun], groups: Sequence[StoredGroup]) -> dict[str, int]:
    """Bytes that each run, and no other, keeps in the store, by key."""
    sizes = {group.prefix: group.size for group in groups}
    users = Counter(prefix for run in runs for prefix in run.needs)
    return {run.key: sum(sizes.get(prefix, 0) for prefix in run.needs if users[prefix] == 1) for run in runs}


def runs_table(runs: Sequence[RecordedRun], alone: Mapping[str, int]) -> Table:
    """Runs, one a line.

    Args:
        runs: in their order.
        alone: from sizes_alone; empty to leave the sizes out.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows = [run.summary() for run in runs]
    # A key usually begins with the name; a terminal has room for little more.
    with_names = any(not row["key"].startswith(row["name"]) for row in rows)
    table.add_column("run", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    if with_names:
        table.add_column("name", no_wrap=True)
    table.add_column("started (UTC)", no_wrap=True)
    table.add_column("screen", overflow="fold", min_width=8)
    table.add_column("folds", justify="right", no_wrap=True)
    table.add_column("idle for", justify="right", no_wrap=True)
    if alone:
        table.add_column("alone", justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for run, row in zip(runs, rows, strict=True):
        kind = f"{row['kind']} by {row['model'][:12]}" if row["model"] else row["kind"]
        name = [row["name"]] if with_names else []
        screen = _end_of(row["screen"]) if run.record else "(damaged record)" if run.problem else "(incomplete record)"
        folds = f"{row['finished_folds']}/{row['folds']}" if row["folds"] else str(row["finished_folds"])
        sizes = [shown_size(alone[run.key])] if alone else []
        started = row["started"][:16].replace("T", " ")
        table.add_row(run.key, kind, *name, started, screen, folds, shown_age(now - run.active), *sizes)
    return table


def caution_lines(chosen: Sequence[RecordedRun], runs: Iterable[RecordedRun]) -> list[str]:
    """What to consider before runs are forgotten: some may still be running, others start from them."""
    lines = []
    now = datetime.now(UTC)
    keys = {run.key for run in chosen}
    others = [run.summary() for run in runs if run.key not in keys]
    for run in chosen:
        if now - run.active < RECENT:
            lines.append(
                f"{run.key} was active {shown_age(now - run.active)} ago; if it is still running, leave it alone"
            )
        for other in others:
            if str(other["init_from"] or "").rsplit("/", 1)[-1] == run.key:
                lines.append(f"{other['key']} starts from its weights (init_from), and could not be run again")
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
    """An age in its largest unit: 41 days."""
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
    """The end of a long path, which is more telling than its beginning."""
    return path if len(path) <= LONGEST_PATH else f"…{path[1 - LONGEST_PATH :]}"


def _sums(groups: Sequence[StoredGroup]) -> tuple[str, str, str]:
    return f"{len(groups):,}", f"{sum(g.objects for g in groups):,}", shown_size(sum(g.size for g in groups))
