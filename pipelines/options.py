"""Options that several commands share, and the confirmation before something is removed. Imports neither torch nor kfp."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.core.command import AddressOption, NameOption
from components.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from components.core.config import RunConfig
    from components.core.storage.garbage import StoredGroup
    from components.core.storage.object_store import ObjectStore

CONFIG_VARIABLE = "CELLSIGNAL_CONFIG"
_SCREEN = "directory of the screen, or s3://BUCKET/PREFIX"

Config = Annotated[
    str,
    NameOption(
        "--config",
        envvar=CONFIG_VARIABLE,
        help="shipped configuration (cpu-small, demo, gpu-1h, growth, mitocheck, published, rxrx1) or YAML file",
    ),
]
OptionalConfig = Annotated[
    str | None,
    NameOption(
        "--config", envvar=CONFIG_VARIABLE, help="configuration for the store and other settings of the environment"
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="changes one field of the configuration, for example pretrain.epochs=4"
    ),
]
Screen = Annotated[str, AddressOption(help=_SCREEN)]
SimulatedScreen = Annotated[str | None, AddressOption(help=f"{_SCREEN}; default: simulate a screen")]
BucketScreen = Annotated[str | None, AddressOption(help="s3://BUCKET/PREFIX of the screen")]
_TRUTH = "CSV of labels (id_code and a column of the screen's word, sirna for RxRx1), read only to score the report"
TruthFile = Annotated[str | None, AddressOption(metavar="FILE", help=_TRUTH)]
TruthAddress = Annotated[str | None, AddressOption(metavar="s3://BUCKET/KEY", help=_TRUTH)]
Truth = Annotated[str | None, AddressOption(help=f"{_TRUTH}: a file, or on a cluster s3://BUCKET/KEY")]
Bucket = Annotated[str | None, typer.Option(help="bucket or file:///FOLDER, instead of the configuration's")]
Prefix = Annotated[str | None, typer.Option(help="key prefix in the bucket or folder, instead of the configuration's")]
Store = Annotated[
    str | None,
    AddressOption(
        "--store",
        help="object store: a directory, file:///FOLDER or s3://BUCKET[/PREFIX]; default: the variable CELLSIGNAL_STORE, then "
        "store.bucket of the configuration, then a folder in the user's cache",
    ),
]
Endpoint = Annotated[
    str,
    typer.Option(help="address of Kubeflow Pipelines, http(s)://HOST[/pipeline]", envvar="KF_PIPELINES_ENDPOINT"),
]
Images = Annotated[
    str,
    NameOption(
        help="file written by `images push`, whose digests are pinned; or `tags`: images by tag that the nodes already have, "
        "for which Kubeflow caches nothing"
    ),
]
ClusterImages = Annotated[
    str | None,
    NameOption("--images", help="with --endpoint: file written by `images push` (default images.json), or `tags`"),
]
Wait = Annotated[bool, typer.Option("--wait", help="follow the run, then fetch its results")]
Resubmit = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="with --wait: how many times a failed run is submitted again, default 3; it resumes from finished work and "
        "checkpoints. Bad input is never tried again. With 0 a run is still terminated if a task has failed and nothing else "
        "makes progress",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="HOURS", help="hours after which following ends, default 72; the run continues"),
]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask for confirmation, for scripts")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout; everything else goes to stderr")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only show what would be removed")]

HOURS = 72.0
"""Default of --timeout."""
FULL_WIDTH = 1000
"""Columns of output that no terminal shows, so that no table is cut."""
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """Parses a duration such as 90m, 36h, 14d or 2w.

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([mhdw])", text.strip())
    if not found:
        raise InputError(f"--older-than {text!r}: expected a number followed by m, h, d or w, for example 36h or 14d")
    # At most a century: datetime has no time before the year 1.
    return min(timedelta(**{_UNITS[found[2]]: float(found[1])}), timedelta(days=36_500))


def check_new_file(option: str, path: Path) -> None:
    """InputError unless a file can be written at the path: it is a folder, or its folder is missing."""
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder; give the name of a file in it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.parent}; create it")


def timeout_seconds(hours: float | None) -> float:
    """The value of --timeout in seconds.

    Raises:
        InputError: it is not above 0.
    """
    hours = HOURS if hours is None else hours
    if not hours > 0:  # nan is not either
        raise InputError(f"--timeout {hours:g}: give hours above 0")
    return hours * 3600


def refuse_elsewhere(endpoint: str | None, here: Mapping[str, object], on_cluster: Mapping[str, object]) -> None:
    """Refuses the options of this machine that are given with --endpoint, and those of a cluster that are given without it.

    Both are the values of options by name.

    Raises:
        InputError: names the first one.
    """
    for option, value in (here if endpoint else on_cluster).items():
        if value and endpoint:
            raise InputError(f"{option} applies to this machine; leave it out, or --endpoint")
        if value:
            raise InputError(f"{option} applies to a cluster; give --endpoint as well, or leave it out")


def console_of_terminal(as_json: bool = False) -> Console:
    """The console for a command's output: as wide as the terminal, or as any table; with JSON on stdout, it writes to stderr."""
    from rich.console import Console

    console = Console(stderr=as_json)
    if not console.file.isatty():
        console.width = FULL_WIDTH
    return console


def print_json(**document: Any) -> None:
    """Prints the JSON document of --json."""
    import json

    typer.echo(json.dumps({"schema": 1, **document}, indent=1))


@dataclass(frozen=True)
class StoreOptions:
    """The options that choose an existing store."""

    config: OptionalConfig = None
    set: Changes = None
    bucket: Bucket = None
    prefix: Prefix = None
    store: Store = None

    def open(self) -> ObjectStore:
        """Opens the store, which must exist.

        Raises:
            InputError: options that contradict each other, or a store that is not there.
        """
        from components.core.config import RunConfig, StoreConfig, parse
        from components.core.storage.opening import choose_store, open_existing

        if self.set and self.config is None:
            raise InputError("--set changes a configuration; give --config as well, or --bucket and --prefix")
        chosen = RunConfig.load(self.config, self.set or []).store if self.config is not None else StoreConfig()
        parts = {name: value for name in ("bucket", "prefix") if (value := getattr(self, name)) is not None}
        if parts and self.store is not None:
            raise InputError("--store is a whole address; leave --bucket and --prefix out")
        for name, value in parts.items():
            chosen = parse(StoreConfig, {**chosen.model_dump(), name: value}, source=f"--{name}")
        if not parts:
            chosen = choose_store(chosen, self.store)
        return open_existing(chosen.address)


def with_store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of StoreOptions after its own; it receives them as its parameter `options`."""
    own = [each for each in signature(command, eval_str=True).parameters.values() if each.name != "options"]
    added = signature(StoreOptions, eval_str=True).parameters

    @wraps(command)
    def with_options(**values: Any) -> None:
        options = StoreOptions(**{name: values.pop(name) for name in added})
        command(**values, options=options)

    with_options.__signature__ = Signature([*own, *added.values()])  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in (*own, *added.values())}
    return with_options


def with_store(config: RunConfig, option: str | None) -> RunConfig:
    """The configuration with the explicit address of the store of a command on this machine.

    Raises:
        InputError: --store, or CELLSIGNAL_STORE, is no address of a store.
    """
    from components.core.storage.opening import choose_store

    return config.model_copy(update={"store": choose_store(config.store, option)})


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Prints text on one line, as it is."""
    console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


def remove_shown(
    console: Console,
    store: ObjectStore,
    shown: Sequence[StoredGroup],
    find: Callable[[], Sequence[StoredGroup]],
    cutoff: datetime,
    yes: bool,
    dry_run: bool,
) -> int:
    """Asks for confirmation, then removes garbage that was shown, as core.storage.garbage.sweep; returns how many objects."""
    from components.core.storage.garbage import sweep
    from pipelines.store.tables import amount

    if not agreed(console, f"Remove {amount(shown)}?", yes, dry_run):
        return 0
    removed, stay = sweep(store, shown, find, cutoff)
    print_line(console, f"removed {removed:,} objects")
    if stay:
        print_line(console, f"{stay} stay: they came into use while this command ran")
    return removed


def agreed(console: Console, question: str, yes: bool, dry_run: bool) -> bool:
    """Asks for confirmation. InputError if nothing would answer, since there is no terminal."""
    if dry_run:
        console.print("nothing was removed (--dry-run)")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("nothing was removed: there is no terminal to confirm on; give --yes to remove")
    if typer.confirm(question, err=console.stderr):
        return True
    console.print("nothing was removed")
    return False
