"""cellsignal store: forgets runs, and removes what no run needs. Imports neither torch nor kfp."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

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
    print_line,
    remove_shown,
    with_store_options,
)

if TYPE_CHECKING:
    from components.core.storage.garbage import StoredGroup

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
            metavar="AGE",
            help="keep everything younger, for example 36h, 14d; give more than any packing takes, since a run that packs has "
            "no record yet",
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
    from components.core.storage.garbage import find_garbage, list_groups, list_uploads, needed_by
    from components.core.storage.runs import read_runs
    from pipelines.store.tables import amount, garbage_rows, garbage_table

    console = console_of_terminal(as_json)
    opened = options.open()
    cutoff, uri = datetime.now(UTC) - age, opened.uri("")
    groups, runs, uploads = list_groups(opened), read_runs(opened), []
    try:
        uploads = list_uploads(opened)
    except InputError as error:
        print_line(console, f"unfinished uploads are left alone: {error}", style="yellow")
    groups += uploads
    garbage = find_garbage(groups, needed_by(runs), cutoff)
    prefixes = {group.prefix for group in garbage}
    kept = [group for group in groups if group.prefix not in prefixes]
    waiting = [group for group in find_garbage(groups, needed_by(runs)) if group.prefix not in prefixes]
    if garbage:
        print_line(console, f"{uri}: needed by no run and older than {older_than}")
        console.print(garbage_table(garbage))
    else:
        print_line(console, f"{uri}: nothing to remove")
    print_line(console, f"kept: {amount(kept)} ({len(runs) or 'no'} recorded run{'s' if len(runs) != 1 else ''})")
    if waiting:
        line = f"of these, {amount(waiting)} are in no run's record, but younger than {older_than}: runs in progress may need them"
        print_line(console, line)

    def find() -> list[StoredGroup]:
        groups = [*list_groups(opened), *(list_uploads(opened) if uploads else ())]
        return find_garbage(groups, needed_by(read_runs(opened)), cutoff)

    removed = remove_shown(console, opened, garbage, find, cutoff, yes, dry_run) if garbage else 0
    if as_json:
        found = {"garbage": garbage_rows(garbage), "waiting": garbage_rows(waiting), "kept": garbage_rows(kept)}
        print_json(store=uri, older_than=older_than, **found, removed_objects=removed)


@store_app.command()
@with_store_options
def forget(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="keys of runs, as `cellsignal runs` shows")],
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
    from components.core.storage.run_records import RUN, run_file
    from components.core.storage.runs import read_runs
    from pipelines.store.tables import caution_lines, run_row, runs_table, sizes_alone

    console = console_of_terminal(as_json)
    opened = options.open()
    found = {run.key: run for run in read_runs(opened)}
    for key in keys:
        if key not in found:
            raise InputError(f"{key}: no such run below {opened.uri('')} (`cellsignal runs` lists the runs there)")
    chosen = [run for run in found.values() if run.key in keys]
    alone = sizes_alone(list(found.values()), list_groups(opened))
    console.print(runs_table([run_row(run) for run in chosen], alone, console.width))
    for line in caution_lines(chosen, found.values()):
        print_line(console, line, style="yellow")
    agree = agreed(console, f"Forget {len(chosen)} run{'s' if len(chosen) > 1 else ''}?", yes, dry_run)
    names = [run.key for run in chosen] if agree else []
    for name in names:
        opened.delete(run_file(name, RUN))  # first, since gc would trust a record without its tasks
        opened.delete_prefix(run_file(name, ""))
    if as_json:
        print_json(store=opened.uri(""), forgotten=names)
    elif agree:
        print_line(console, f"forgotten: {', '.join(names)}; `cellsignal store gc` removes what only they needed")
