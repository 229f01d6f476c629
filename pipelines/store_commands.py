"""cellsignal store: what runs there are, giving up some of them, and removing what no run needs. Imports neither torch nor kfp."""

from __future__ import annotations

from typing import Annotated

import typer

from components.core.errors import InputError
from pipelines.store_options import (
    Bucket,
    Changes,
    Config,
    DryRun,
    Prefix,
    Store,
    Yes,
    agreed,
    console_of_terminal,
    duration,
    opened_store,
)

store_app = typer.Typer(
    help="Shows what an object store (a bucket, or a folder) holds, and removes what no run needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@store_app.command()
def gc(
    older_than: Annotated[
        str,
        typer.Option(
            help="keep what is younger, whatever the records say, for example 36h, 14d: a run that packs has no record yet, "
            "and the output of a running step is stored before it is recorded. Give more than any packing takes"
        ),
    ] = "2d",
    yes: Yes = False,
    dry_run: DryRun = False,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Removes plates with what leads to them, finished outputs and checkpoints that no recorded run needs, after showing it.

    A run is recorded below runs/KEY and keeps its plates and outputs until `cellsignal store forget KEY`. Nothing younger
    than --older-than is removed, but for checkpoints of steps that have finished. growth and protocols leave no records: what
    they stored is removed once it is old, so give them a --store of their own if they shall go on after a long break.
    """
    age = duration(older_than)
    from components.core.storage.claims import Claims
    from components.core.storage.sweeping import garbage_of, sweep, take_stock
    from pipelines.store_tables import amount, garbage_table, kept_line, waiting_line

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    claims = Claims(opened)
    contents = take_stock(opened)
    claims.refresh()
    garbage, waiting = garbage_of(opened, claims, contents, age)
    kept = f"{kept_line(contents, claims, garbage)}; {opened.requests['lists']:,} list requests"
    lines = [kept, waiting_line(waiting, older_than)]
    if not garbage:
        console.print(f"{opened.uri('')}: nothing to remove", highlight=False, soft_wrap=True)
    else:
        where = f"{opened.uri('')}: what no run needs and is older than {older_than}"
        console.print(where, highlight=False, soft_wrap=True)
        console.print(garbage_table(garbage))
    for line in filter(None, lines):
        console.print(line, highlight=False, soft_wrap=True)
    if not garbage or not agreed(console, f"Remove {amount(garbage)}?", yes, dry_run):
        return
    swept = sweep(opened, garbage, claims, age)
    console.print(f"removed {swept.objects:,} objects", highlight=False)
    if swept.spared:
        console.print(f"{len(swept.spared)} stay: they came into use meanwhile", highlight=False)


@store_app.command()
def runs(
    sizes: Annotated[
        bool, typer.Option("--sizes", help="also what each run alone keeps in the store; lists every object")
    ] = False,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Lists the recorded runs, the one that was active last at the end."""
    from components.core.storage.claims import Claims
    from components.core.storage.run_summaries import summarise_runs
    from components.core.storage.sweeping import take_stock
    from pipelines.store_tables import runs_table

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    claims = Claims(opened)
    claims.refresh()
    found = summarise_runs(opened, claims, take_stock(opened) if sizes else None)
    if not found:
        console.print(f"{opened.uri('')}: no runs", highlight=False, soft_wrap=True)
        return
    console.print(runs_table(found))


@store_app.command()
def forget(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="keys of runs, as `cellsignal store runs` shows")],
    yes: Yes = False,
    dry_run: DryRun = False,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Removes the records of runs, after showing them. `cellsignal store gc` may then remove what only they needed.

    Results in a run's folder stay. A forgotten run can neither be finished without its missing folds nor start another one.
    """
    from components.core.storage.claims import Claims
    from components.core.storage.run_record import runs_there
    from components.core.storage.run_summaries import summarise_runs
    from components.core.storage.sweeping import take_stock
    from pipelines.store_tables import runs_table, users_lines

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    claims = Claims(opened)
    claims.refresh()
    for key in keys:
        if key not in claims.runs:
            raise InputError(f"{key}: no such run below {opened.uri('')} ({runs_there(claims.runs)})")
    found = summarise_runs(opened, claims, take_stock(opened))
    chosen = [run for run in found if run.key in keys]
    console.print(runs_table(chosen))
    for line in users_lines(chosen, found):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    if not agreed(console, f"Forget {len(chosen)} run{'s' if len(chosen) > 1 else ''}?", yes, dry_run):
        return
    for run in chosen:
        # The record that makes it a run goes first; what is left of one keeps its plates until it is gone as well.
        objects = sorted(claims.runs[run.key].objects, key=lambda key: key.count("/") > 2 or "/run.json" not in key)
        opened.delete_many(objects[:1])
        opened.delete_many(objects[1:])
    console.print(
        f"forgotten: {', '.join(run.key for run in chosen)}; `cellsignal store gc` removes what only they needed",
        highlight=False,
        soft_wrap=True,
    )
