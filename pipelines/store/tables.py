"""The tables and JSON of `cellsignal store` and `cellsignal runs`. Rich; their content comes from components.core.storage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from components.core.storage.garbage import StoredGroup
from components.core.storage.run_records import PREDICTING_STEPS, RunRecord
from components.core.storage.runs import RecordedRun
from components.core.storage.task_status import SILENCE

WRAPPED = 15
"""Columns that the kind of a run needs if it is wrapped: `by`, and a model."""
RECENT = timedelta(hours=1)
"""A run that was active within this time may still be running."""


def garbage_rows(groups: Sequence[StoredGroup]) -> list[dict[str, Any]]:
    """Numbers of groups, objects and bytes by kind."""
    counts = Counter(group.kind for group in groups)
    rows = []
    for kind, count in counts.items():
        own = [group for group in groups if group.kind == kind]
        sums = {"objects": sum(group.objects for group in own), "bytes": sum(group.size for group in own)}
        rows.append({"kind": kind, "count": count, **sums})
    return rows


def garbage_table(groups: Sequence[StoredGroup]) -> Table:
    """The garbage by kind."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("kind", no_wrap=True)
    for name in ("count", "objects", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = garbage_rows(groups)
    for row in rows:
        table.add_row(f"{row['kind']}s", f"{row['count']:,}", f"{row['objects']:,}", decimal(row["bytes"]))
    table.add_section()
    count, objects, size = (sum(row[name] for row in rows) for name in ("count", "objects", "bytes"))
    table.add_row("total", f"{count:,}", f"{objects:,}", decimal(size), style="bold")
    return table


def amount(groups: Sequence[StoredGroup]) -> str:
    """Number of objects and their size."""
    objects = sum(group.objects for group in groups)
    return f"{objects:,} object{'s' if objects != 1 else ''}, {decimal(sum(group.size for group in groups))}"


def sizes_alone(runs: Sequence[RecordedRun], groups: Sequence[StoredGroup]) -> dict[str, int]:
    """Bytes that each run, and no other, keeps in the store, by key."""
    sizes = {group.prefix: group.size for group in groups}
    users = Counter(prefix for run in runs for prefix in run.needs)
    return {run.key: sum(sizes.get(prefix, 0) for prefix in run.needs if users[prefix] == 1) for run in runs}


def run_row(run: RecordedRun, retrained: Collection[str] = ()) -> dict[str, Any]:
    """A run in plain values, for the table and for JSON; `retrained` are the keys of runs that retrainings started."""
    record = run.record or RunRecord(key=run.key, config={}, lineage={})
    kind = "prediction" if record.prediction else "retraining" if run.key in retrained else "training"
    return {
        "key": run.key,
        "kind": kind if run.record else "unknown",
        "name": str(record.config.get("name") or ""),
        "started": str(record.lineage.get("started") or ""),
        "screen": str(record.lineage.get("screen") or ""),
        "init_from": record.config.get("init_from") or None,
        "model": record.prediction.model if record.prediction else None,
        "state": _state(run),
        "finished_folds": sum(task.step in PREDICTING_STEPS for task in run.tasks),
        "folds": _folds(run.record),
        "last_active": run.active.isoformat(timespec="seconds"),
        "plates": len(record.plates),
        "outputs": len({task.prefix for task in run.tasks}),
        "problem": run.problem or None,
    }


def _state(run: RecordedRun) -> str:
    """`finished` with all results, else `running` if a task has reported lately, and `unfinished` if none has."""
    silence = (datetime.now(UTC) - run.reported).total_seconds() if run.reported else math.inf
    return "finished" if run.has_results else "running" if silence < SILENCE else "unfinished"


def _folds(record: RunRecord | None) -> int | None:
    """Folds of all cell types that a run trains or predicts with; None without a record."""
    if record is None:
        return None
    if record.prediction is not None:
        return sum(len(numbers) for numbers in record.prediction.folds.values())
    folds, screen = record.config.get("folds") or {}, record.config.get("screen") or {}
    return len(folds.get("train") or range(folds.get("count") or 0)) * len(screen.get("cell_types") or ())


def runs_table(rows: Sequence[Mapping[str, Any]], alone: Mapping[str, int], width: int) -> Table:
    """Runs, one per line.

    Args:
        rows: from run_row, in their order.
        alone: from sizes_alone; empty to leave the sizes out.
        width: columns of the console. Keys, times and sizes are never cut: if they do not fit, other columns are left out.
    """
    each = [_cells(row, alone, width) for row in rows]
    cells = {name: [own[name] for own in each] for name in each[0]}
    if all(row["key"].startswith(row["name"]) for row in rows):  # as usual
        del cells["name"]

    def needed() -> int:
        least = {name: max(map(len, (name, *values))) for name, values in cells.items()}
        return sum(2 + (min(WRAPPED, size) if name == "kind" else size) for name, size in least.items())

    for name in ("screen", "name", "folds", "state", "kind"):
        if needed() > width:
            cells.pop(name, None)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in cells:
        wraps = name == "kind" or (name == "run" and needed() > width)
        right = name in ("folds", "idle for", "alone")
        table.add_column(name, overflow="fold", no_wrap=not wraps, justify="right" if right else "left")
    for line in zip(*cells.values(), strict=True):
        table.add_row(*map(escape, line))
    return table


def _cells(row: Mapping[str, Any], alone: Mapping[str, int], width: int) -> dict[str, str]:
    """A run's cells by column; of a long path the end."""
    screen, longest = row["screen"], max(16, width // 5)
    if row["kind"] == "unknown":
        screen = "(damaged record)" if row["problem"] else "(incomplete record)"
    elif len(screen) > longest:
        screen = f"…{screen[1 - longest :]}"
    return {
        "run": row["key"],
        "kind": f"prediction by {row['model'][:12]}" if row["model"] else row["kind"],
        "name": row["name"],
        "started (UTC)": row["started"][:16].replace("T", " "),
        "screen": screen,
        "state": row["state"],
        "folds": f"{row['finished_folds']}/{row['folds']}" if row["folds"] else str(row["finished_folds"]),
        "idle for": shown_age(datetime.fromisoformat(row["last_active"])),
        **({"alone": decimal(alone[row["key"]])} if alone else {}),
    }


def caution_lines(chosen: Sequence[RecordedRun], runs: Iterable[RecordedRun]) -> list[str]:
    """What to consider before runs are forgotten: some may still be running, others start from them."""
    lines = []
    keys = {run.key for run in chosen}
    for run in chosen:
        if datetime.now(UTC) - run.active < RECENT:
            lines.append(f"{run.key} was active {shown_age(run.active)} ago; if it is still running, leave it alone")
    for other in runs:
        source = str((other.record.config.get("init_from") if other.record else "") or "").rsplit("/", 1)[-1]
        if source in keys and other.key not in keys:
            lines.append(f"{other.key} starts from the weights of {source} (init_from), and could not be run again")
    return lines


def shown_age(since: datetime) -> str:
    """The time since then, in its largest unit: 41 days."""
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (unit == "minute" and seconds >= length):
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "a moment"
