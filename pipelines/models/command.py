"""cellsignal models: lists and shows published models, publishes runs, changes the champion. Imports neither torch nor kfp."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from components.core.errors import InputError
from pipelines.options import (
    DryRun,
    Json,
    StoreOptions,
    Yes,
    console_of_terminal,
    duration,
    print_json,
    print_line,
    remove_shown,
    with_store_options,
)

if TYPE_CHECKING:
    from components.core.registry.champion import PromotionResult
    from components.core.storage.object_store import ObjectStore

NOT_PROMOTED = 4
"""Exit code if another model was promoted in between."""

models_app = typer.Typer(
    help="Shows the published models of an object store, and which of them is the champion.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="a finished run's key, its address, or its folder")]
Reason = Annotated[str, typer.Option(help="why, for the champion's history")]
Expected = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="generation of the champion that the decision was based on (see `models show`), 0 for none: if another was promoted "
        "since, nothing is changed and the exit code is 4",
    ),
]


@models_app.command(name="list")
@with_store_options
def list_(json: Json = False, *, options: StoreOptions) -> None:
    """Lists the published models, the newest last, with their scores without and with the prior."""
    from components.core.registry.champion import read_champion
    from components.core.registry.model_manifest import SHORT
    from components.core.registry.published_models import list_models
    from pipelines.models.tables import LEGEND, models_table

    console, opened = console_of_terminal(json), options.open()
    champion, (models, unreadable) = read_champion(opened), list_models(opened)
    problems = list(unreadable.values())
    if champion is not None and champion.now.fingerprint not in {*unreadable, *(each.fingerprint for each in models)}:
        problems.append(
            f"the champion {champion.now.fingerprint[:SHORT]} (generation {champion.now.generation}) is not there any more; "
            "publish its run again, or promote another model"
        )
    if json:
        fields = {"fingerprint", "name", "created", "run", "cell_types", "backbones", "partial", "scores"}
        print_json(
            champion=champion.now.model_dump(mode="json") if champion else None,
            models=[{"fingerprint": name, "problem": problem} for name, problem in unreadable.items()]
            + [model.model_dump(mode="json", include=fields) for model in models],
            problems=problems,
        )
    else:
        if models or unreadable:
            console.print(models_table(models, unreadable, champion))
            print_line(console, LEGEND)
        else:
            print_line(console, f"{opened.uri('')}: no models")
        for problem in problems:
            print_line(console, problem, style="yellow")
    if models and champion is None:
        print_line(console, "no model has been promoted yet")


@models_app.command()
@with_store_options
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="`champion`, the first digits of a fingerprint, or a model's address")
    ] = "champion",
    card: Annotated[bool, typer.Option("--card", help="print the model card (Markdown) instead")] = False,
    json: Json = False,
    *,
    options: StoreOptions,
) -> None:
    """Shows a model's data and scores, and when it was champion."""
    from json import loads

    from components.core.evaluation.table import accuracy_table
    from components.core.registry.champion import read_champion
    from components.core.registry.model_manifest import CARD, METRICS
    from components.core.registry.published_models import find_model, read_file
    from pipelines.models.tables import facts_table, history_table

    if card and json:
        raise InputError("--card prints Markdown, --json JSON; give one of them")
    console = console_of_terminal(json)
    registry, found = find_model(options.open(), model)
    if card:
        typer.echo(read_file(registry, found, CARD).decode(), nl=False)
        return
    champion = read_champion(registry)
    metrics = loads(read_file(registry, found, METRICS))
    if json:
        record = champion.model_dump(mode="json") if champion else None
        print_json(model=found.model_dump(mode="json"), metrics=metrics, champion=record)
        return
    console.print(facts_table(found, champion), highlight=False)
    console.print()
    console.print(accuracy_table(metrics))
    if champion is not None:
        console.print("Champions", highlight=False)
        console.print(history_table(champion))


@models_app.command()
@with_store_options
def publish(
    run: Run,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="rewrite the files of a published model, some of which are missing or damaged"),
    ] = False,
    *,
    options: StoreOptions,
) -> None:
    """Publishes a finished run as a model: its networks, scores, configuration and a card. A second time does nothing."""
    _publish(*_store_of_run(run, options), repair)


@models_app.command()
@with_store_options
def promote(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="the first digits of a model's fingerprint, or a finished run (key, address or folder), which is published first",
        ),
    ],
    reason: Reason,
    expect: Expected = None,
    *,
    options: StoreOptions,
) -> None:
    """Makes a model the champion, which `cellsignal predict` uses, by a conditional write.

    Exits with 4 if another model was promoted in between; nothing is changed then.
    """
    from components.core.registry.champion import promote as promote_model
    from components.core.registry.published_models import DIGITS, resolve_fingerprint

    reason = _checked_reason(reason)
    if re.fullmatch(DIGITS, model):
        opened = options.open()
        fingerprint = resolve_fingerprint(opened, model)
    else:
        opened, key = _store_of_run(model, options)
        fingerprint = _publish(opened, key)
    _report(promote_model(opened, fingerprint, reason, expected=expect))


@models_app.command()
@with_store_options
def rollback(reason: Reason, expect: Expected = None, *, options: StoreOptions) -> None:
    """Makes the champion before the present one the champion again; twice goes back two.

    Exits with 4 if another model was promoted in between; nothing is changed then.
    """
    from components.core.registry.champion import rollback as roll_back

    _report(roll_back(options.open(), _checked_reason(reason), expected=expect))


@models_app.command()
@with_store_options
def gc(
    keep: Annotated[
        int, typer.Option(metavar="N", min=0, help="champions before the present one to keep, for rollbacks")
    ] = 3,
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="keep what is younger, for example 36h, 14d; longer than publishing takes"),
    ] = "30d",
    yes: Yes = False,
    dry_run: DryRun = False,
    *,
    options: StoreOptions,
) -> None:
    """Removes old models other than the champion and the last ones before it, and files of killed publications.

    Shows them first. While no model has been promoted, complete models stay.
    """
    from components.core.registry.removal import removable_models
    from pipelines.models.tables import removable_table

    console, cutoff = console_of_terminal(), datetime.now(UTC) - duration(older_than)
    opened = options.open()
    models, found = opened.uri("models"), removable_models(opened, keep, cutoff)
    if not found:
        print_line(console, f"{models}: nothing to remove")
        return
    print_line(console, f"{models}: older than {older_than}, and neither the champion nor one of the {keep} before it")
    console.print(removable_table(found))
    remove_shown(console, opened, found, lambda: removable_models(opened, keep, cutoff), cutoff, yes, dry_run)


def _store_of_run(run: str, options: StoreOptions) -> tuple[ObjectStore, str]:
    """A run's store and key: the store in its address or folder, else the one that the options choose."""
    from pipelines.run.folder import find_run

    known = find_run(run, "run")
    if known.key != run:
        if options.bucket is not None or options.prefix is not None:
            raise InputError(f"run {run}: is the address of a run in its own store; leave --bucket and --prefix out")
        if options.store is None:
            options = replace(options, store=known.store.address)
    return options.open(), known.key


def _publish(store: ObjectStore, key: str, repair: bool = False) -> str:
    """Publishes a run; returns the model's fingerprint."""
    from components.core.registry.publishing import publish as publish_run

    model, new = publish_run(store, key, repair)
    done = "published" if new else f"was published{'' if model.run == key else f' as run {model.run}'} before"
    print_line(console_of_terminal(), f"model {model.short} {done}: {store.uri(f'models/{model.fingerprint}')}")
    return model.fingerprint


def _report(result: PromotionResult) -> None:
    """Prints the result of a promotion; exits with 4 if another came first."""
    now = result.champion.now
    if result.outcome == "overtaken":
        typer.echo(
            f"not promoted: {now.by} has promoted {now.fingerprint[:12]} (generation {now.generation}); look at it with "
            "`cellsignal models show`, then decide again",
            err=True,
        )
        raise typer.Exit(NOT_PROMOTED)
    already = " already" if result.outcome == "already" else ""
    print_line(
        console_of_terminal(), f"model {now.fingerprint[:12]} is the champion{already}, generation {now.generation}"
    )


def _checked_reason(text: str) -> str:
    reason = " ".join(text.split())
    if not reason:
        raise InputError("--reason: is empty; give the reason for the champion's history")
    return reason
