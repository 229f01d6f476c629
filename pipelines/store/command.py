"""cellsignal store: lists runs, forgets some of them, and removes what no run needs. Imports neither torch nor kfp."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from components.core.errors import InputError
from pipelines.options import (
    DryRun,
    Json,
    StoreOptions,
    Yes,
    agreed,
    console_of_terminal,
    duration,
    print_json,
    with_store_options,
)

store_app = typer.Typer(
    help="Shows what an object store (a bucket, or a folder) holds, and removes what no run needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@store_app.command()
@with_store_options
def gc(
    older_than: Annotated[
        str,
        typer.Option(
            help="keep whatever is younger, for example 36h, 14d; give more than any packing takes, since a run that packs has no "
            "record yet"
        ),
    ] = "2d",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    *,
    options: StoreOptions,
) -> None:
    """Removes plates, finished outputs and checkpoints that no recorded run needs, after showing them.

    A run is recorded below runs/KEY and keeps its plates and outputs until `cellsignal store forget KEY`. Nothing younger
    than --older-than is removed. growth and protocols leave no records: what they stored is removed once it is old, so give
    them a --store of their own if they are to resume after a long break.
    """
    age = duration(older_than)
    from components.core.storage.garbage import cutoff_of, find_garbage, list_groups, sweep
    from components.core.storage.recorded_runs import needed_by, read_runs
    from pipelines.store.tables import amount, garbage_json, garbage_table, kept_line

    console = console_of_terminal(as_json)
    opened = options.open()
    cutoff, uri = cutoff_of(age), opened.uri("")
    groups, runs = list_groups(opened), read_runs(opened)
    needed = needed_by(runs)
    garbage = find_garbage(groups, needed, cutoff)
    prefixes = {group.prefix for group in garbage}
    kept = [group for group in groups if group.prefix not in prefixes]
    waiting = [group for group in find_garbage(groups, needed, datetime.now(UTC)) if group.prefix not in prefixes]
    if garbage:
        say = f"{uri}: what no run needs and is older than {older_than}"
        console.print(say, highlight=False, soft_wrap=True)
        console.print(garbage_table(garbage))
    else:
        console.print(f"{uri}: nothing to remove", highlight=False, soft_wrap=True)
    console.print(kept_line(kept, len(runs)), highlight=False, soft_wrap=True)
    if waiting:
        console.print(
            f"of that, no record names {amount(waiting)}, which may belong to runs in progress (younger than {older_than})",
            highlight=False,
            soft_wrap=True,
        )
    removed = stay = 0
    if garbage and agreed(console, f"Remove {amount(garbage)}?", yes, dry_run):
        removed, stay = sweep(opened, garbage, cutoff)
        console.print(f"removed {removed:,} objects", highlight=False)
        if stay:
            console.print(f"{stay} stay: they came into use while this command ran", highlight=False)
    if as_json:
        found = {"garbage": garbage_json(garbage), "waiting": garbage_json(waiting), "kept": garbage_json(kept)}
        print_json(store=uri, older_than=older_than, **found, removed_objects=removed)


@store_app.command()
@with_store_options
def runs(
    sizes: Annotated[
        bool, typer.Option("--sizes", help="also the bytes that each run alone keeps in the store; lists every object")
    ] = False,
    as_json: Json = False,
    *,
    options: StoreOptions,
) -> None:
    """Lists the recorded runs and their kind: training, retraining or prediction. The one that was active last is at the end."""
    from components.core.storage.garbage import list_groups
    from components.core.storage.recorded_runs import read_runs
    from pipelines.store.tables import runs_table, sizes_alone

    console = console_of_terminal(as_json)
    opened = options.open()
    found = read_runs(opened)
    alone = sizes_alone(found, list_groups(opened)) if sizes and found else {}
    if as_json:
        rows = [{**run.summary(), **({"bytes_alone": alone[run.key]} if sizes else {})} for run in found]
        print_json(store=opened.uri(""), runs=rows)
    elif found:
        console.print(runs_table(found, alone))
    else:
        console.print(f"{opened.uri('')}: no runs", highlight=False, soft_wrap=True)


@store_app.command()
@with_store_options
def forget(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="keys of runs, as `cellsignal store runs` shows")],
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    *,
    options: StoreOptions,
) -> None:
    """Removes the records of runs, after showing them. `cellsignal store gc` may then remove what only they needed.

    Results in a run's folder stay. A forgotten run can neither be finished without its missing folds nor start another one.
    """
    from components.core.storage.garbage import list_groups
    from components.core.storage.recorded_runs import read_runs
    from components.core.storage.runs import RUNS, runs_there
    from pipelines.store.tables import caution_lines, runs_table, sizes_alone

    console = console_of_terminal(as_json)
    opened = options.open()
    found = {run.key: run for run in read_runs(opened)}
    for key in keys:
        if key not in found:
            raise InputError(f"{key}: no such run below {opened.uri('')} ({runs_there(found)})")
    chosen = [run for run in found.values() if run.key in keys]
    console.print(runs_table(chosen, sizes_alone(list(found.values()), list_groups(opened))))
    for line in caution_lines(chosen, found.values()):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    agree = agreed(console, f"Forget {len(chosen)} run{'s' if len(chosen) > 1 else ''}?", yes, dry_run)
    for run in chosen if agree else ():
        opened.delete_prefix(f"{RUNS}/{run.key}/run.json")  # which makes it a run
        opened.delete_prefix(f"{RUNS}/{run.key}/")
    names = [run.key for run in chosen] if agree else []
    if as_json:
        print_json(store=opened.uri(""), forgotten=names)
    elif agree:
        console.print(
            f"forgotten: {', '.join(names)}; `cellsignal store gc` removes what only they needed",
            highlight=False,
            soft_wrap=True,
        )
