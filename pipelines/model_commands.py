"""cellsignal models: which models are published, which is the champion, and changing that. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from components.core.errors import InputError
from pipelines.store.options import (
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

if TYPE_CHECKING:
    from rich.console import Console

    from components.core.registry.champion import PromotionResult
    from components.core.registry.model_manifest import ModelManifest
    from components.core.storage.folder_store import FolderStore
    from components.core.storage.object_store import ObjectStore

NOT_PROMOTED = 4
"""Exit code where another model was promoted meanwhile."""

models_app = typer.Typer(
    help="Shows the published models of an object store, and says which of them is the champion.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="a finished run's key, its address, or its folder")]
Expected = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="generation of the champion that the decision was made on, as `models show` tells, 0 for none: where another was "
        "promoted since, nothing is changed and the exit code is 4",
    ),
]


@models_app.command(name="list")
def list_(
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Lists the published models, the newest at the end, with their scores without and with the prior."""
    from components.core.registry.champion import read_champion
    from components.core.registry.model_manifest import SHORT
    from components.core.registry.published_models import list_models
    from pipelines.model_tables import LEGEND, models_table

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    models, champion, damaged = list_models(opened), None, None
    try:
        champion = read_champion(opened)
    except InputError as error:
        damaged = error  # the models are shown all the same, for one of them is to be promoted
    if not models:
        console.print(f"{opened.uri('')}: no models", highlight=False, soft_wrap=True)
    else:
        console.print(models_table(models, champion))
        console.print(LEGEND, highlight=False)
    problems = [model.problem for model in models if model.problem]
    if champion is not None and champion.now.fingerprint not in {model.fingerprint for model in models}:
        problems.append(
            f"the champion {champion.now.fingerprint[:SHORT]} (generation {champion.now.generation}) is not there any more; "
            "publish its run again, or promote another model"
        )
    for problem in problems:
        console.print(problem, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if damaged is not None:
        raise damaged
    if models and champion is None:
        console.print("no model has been promoted yet", highlight=False)


@models_app.command()
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="`champion`, the first digits of a fingerprint, or a model's address")
    ] = "champion",
    card: Annotated[bool, typer.Option("--card", help="print the model card (Markdown) instead")] = False,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Shows what a model was trained on, its scores, and when it was champion."""
    import json

    from components.core.evaluation.table import accuracy_table
    from components.core.registry.champion import read_champion
    from components.core.registry.model_manifest import CARD, METRICS
    from components.core.registry.published_models import find_model, read_file
    from pipelines.model_tables import facts_table, history_table

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    place, found = find_model(opened, model)
    if card:
        typer.echo(read_file(place, found, CARD).decode(), nl=False)
        return
    champion = read_champion(place)
    console.print(facts_table(found, champion), highlight=False)
    console.print()
    console.print(accuracy_table(json.loads(read_file(place, found, METRICS))))
    if champion is not None:
        console.print("Champions", highlight=False)
        console.print(history_table(champion), highlight=False)


@models_app.command()
def publish(
    run: Run,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="write the files of a published model again, where some are missing or damaged"),
    ] = False,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Makes a model of a finished run: its networks, scores, configuration and a card. Again, it does nothing."""
    console = console_of_terminal()
    key, opened = _store_of_run(run, config, set, bucket, prefix, store)
    _publish(opened, key, console, anew)


@models_app.command()
def promote(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="the first digits of a model's fingerprint, or a finished run (key, address, folder), which is published first",
        ),
    ],
    reason: Annotated[str, typer.Option(help="why, for whoever reads the history")],
    expect: Expected = None,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Makes a model the champion, which `cellsignal predict` uses, by a conditional write.

    Exits with 4 where another model was promoted meanwhile; nothing is changed then.
    """
    from components.core.registry.champion import promote as promote_model
    from components.core.registry.published_models import is_fingerprint, resolve_fingerprint

    console = console_of_terminal()
    reason = _reason(reason)
    if is_fingerprint(model):
        opened = opened_store(config, set, bucket, prefix, store)
        _tell(promote_model(opened, resolve_fingerprint(opened, model), reason, expected=expect), console)
        return
    key, opened = _store_of_run(model, config, set, bucket, prefix, store)
    published = _publish(opened, key, console)
    _tell(promote_model(opened, published.fingerprint, reason, expected=expect), console)


@models_app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="why, for whoever reads the history")],
    expect: Expected = None,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Makes the champion before the present one the champion again; twice goes back two.

    Exits with 4 where another model was promoted meanwhile; nothing is changed then.
    """
    from components.core.registry.champion import rollback as roll_back

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    _tell(roll_back(opened, _reason(reason), expected=expect), console)


@models_app.command()
def gc(
    keep: Annotated[int, typer.Option(min=0, help="champions before the present one that stay, to roll back to")] = 3,
    older_than: Annotated[
        str, typer.Option(help="keep what is younger, for example 36h, 14d; give more than any publishing takes")
    ] = "30d",
    yes: Yes = False,
    dry_run: DryRun = False,
    config: Config = None,
    set: Changes = None,
    bucket: Bucket = None,
    prefix: Prefix = None,
    store: Store = None,
) -> None:
    """Removes old models that are neither the champion nor one of the last before it, and what killed publishers left.

    Shows it first. While no model has been promoted, whole models stay.
    """
    age = duration(older_than)
    from components.core.registry.removal import removable, remove
    from pipelines.model_tables import removable_table
    from pipelines.store.tables import shown_size

    console = console_of_terminal()
    opened = opened_store(config, set, bucket, prefix, store)
    found = removable(opened, keep, age)
    if not found:
        console.print(f"{opened.uri('models')}: nothing to remove", highlight=False, soft_wrap=True)
        return
    where = f"{opened.uri('models')}: older than {older_than}, and neither the champion nor one of the {keep} before it"
    console.print(where, highlight=False, soft_wrap=True)
    console.print(removable_table(found))
    size = shown_size(sum(item.size for item in found))
    if not agreed(console, f"Remove {sum(item.objects for item in found):,} objects, {size}?", yes, dry_run):
        return
    gone = remove(opened, found, keep, age)
    console.print(f"removed {sum(item.objects for item in gone):,} objects", highlight=False)
    if len(gone) < len(found):
        console.print(f"{len(found) - len(gone)} stay: they came into use meanwhile", highlight=False)


def _store_of_run(
    run: str,
    config: str | None,
    changes: Sequence[str] | None,
    bucket: str | None,
    prefix: str | None,
    store: str | None,
) -> tuple[str, FolderStore | ObjectStore]:
    """A run's key and its store: that of its address or folder, or the one that the options mean."""
    from pipelines.run.known_run import find_run

    known = find_run(run, "run")
    if known.key != run:
        if config is not None or bucket is not None or prefix is not None:
            raise InputError(f"run {run}: tells its own store; leave --config, --bucket and --prefix out")
        if store is None:
            bucket, prefix = known.store.bucket, known.store.prefix
    return known.key, opened_store(config, changes, bucket, prefix, store)


def _publish(store: FolderStore | ObjectStore, key: str, console: Console, anew: bool = False) -> ModelManifest:
    from components.core.registry.publishing import publish as publish_run

    published = publish_run(store, key, anew)
    model = published.model
    where = store.uri(f"models/{model.fingerprint}")
    said = "published" if published.new else f"was published{'' if model.run == key else f' as run {model.run}'} before"
    console.print(f"model {model.short} {said}: {where}", highlight=False, soft_wrap=True)
    return model


def _tell(change: PromotionResult, console: Console) -> None:
    """Says what became of a promotion; ends with 4 where another came first."""
    now = change.champion.now
    if change.outcome == "overtaken":
        typer.echo(
            f"not promoted: {now.by} promoted {now.fingerprint[:12]} meanwhile (generation {now.generation}); look at it with "
            "`cellsignal models show`, then decide again",
            err=True,
        )
        raise typer.Exit(NOT_PROMOTED)
    said = "is the champion already" if change.outcome == "already" else "is the champion"
    console.print(f"model {now.fingerprint[:12]} {said}, generation {now.generation}", highlight=False)


def _reason(given: str) -> str:
    reason = " ".join(given.split())
    if not reason:
        raise InputError("--reason: is empty; say why, for whoever reads the history")
    return reason
