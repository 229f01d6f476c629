"""Command lines: options that take a path or an address; every error becomes one line on standard error and an exit code."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from components.core.errors import ContactError, InputError, StepError, known_error
from components.core.files import parse_folder, scheme_of


def path_or_name(text: str | Path) -> str:
    """A path on this machine, or a name; file:///PATH becomes PATH. InputError for any other address."""
    text = str(text)
    if not text:
        raise InputError("is empty; write a path, or leave the option out")
    scheme = scheme_of(text)
    if scheme == "file":
        return str(parse_folder(text))
    if not scheme:
        return text
    raise InputError(f"{text}: only a path on this machine is possible here, or file:///PATH")


def local_path(text: str | Path) -> Path:
    """As `path_or_name`, for options that take no name."""
    return Path(path_or_name(text))


def path_or_address(text: str | Path) -> str:
    """As `path_or_name`; an address in a bucket, s3:// or minio://, stays as it is."""
    text = str(text)
    if re.match(r"(s3|minio)://[^/]", text):
        return text
    try:
        return path_or_name(text)
    except InputError:
        if not text:
            raise
        raise InputError(f"{text}: write a path on this machine, file:///PATH or s3://BUCKET/KEY") from None


# Every option that takes a path is one of these.
NameOption = partial(typer.Option, parser=path_or_name)
PathOption = partial(typer.Option, parser=local_path)
AddressOption = partial(typer.Option, parser=path_or_address)

# Options that the command lines of several steps share.
ConfigOption = Annotated[
    str, NameOption(help="shipped name or YAML file; for new plates the config.yaml of the model's run")
]
ScreenOption = Annotated[str, AddressOption(help="manifest of the screen, from normalize: a path, or s3://BUCKET/KEY")]
HoldoutOption = Annotated[
    str, AddressOption(help="manifest of the held-out experiments, or of new plates: a path, or s3://BUCKET/KEY")
]
OutOption = Annotated[str, AddressOption(help="folder to write: a path, or s3://BUCKET/KEY")]
LogitsOption = Annotated[str, AddressOption(help="folder to write, path or s3://: logits of the fold")]
EmbeddingsOption = Annotated[
    str, AddressOption(help="folder to write, path or s3://: embeddings of all wells, as Parquet")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="changes a field of the configuration")
]


def cancel_on_signals(advice: str) -> None:
    """Makes SIGINT and SIGTERM raise a StepError, `cancelled; ` and the advice.

    Only once: a second signal must not disturb the clean-up after the first.
    """

    def cancel(_signal: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise StepError(f"cancelled; {advice}")

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, cancel)


def list_items(option: str, values: Iterable[str]) -> list[str]:
    """The items of an option that takes a list: `--x a,b`, `--x a --x b`, or both. InputError if an item is empty."""
    items = [item.strip() for value in values for item in value.split(",")]
    if "" in items:
        raise InputError(f"{option}: one item is empty; write {option} A,B or {option} A {option} B")
    return items


def number_items(option: str, values: Iterable[str], least: int) -> list[int]:
    """As `list_items`, for whole numbers of at least `least`; InputError for anything else."""
    items = list_items(option, values)
    for item in items:
        if not item.isdecimal() or int(item) < least:
            raise InputError(f"{option} {item}: expected whole numbers from {least}, for example {option} 1,4")
    return [int(item) for item in items]


def run_command(function: Callable[..., Any]) -> None:
    """Runs a function as the command line of its module; its parameters are the options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Runs a command line, and exits: 2 on wrong usage or bad input, 3 on a failure, 5 on lost contact, each after one line.

    An error of the operating system that names a path is bad input, unless the disk is the cause. The traceback of anything
    unexpected goes to a file, which the line names.
    """
    try:
        sys.exit(app(standalone_mode=False))
    except Exception as error:
        code, message = describe_error(error)
        if message.startswith("Usage:"):  # a command without arguments: its help
            print(message, file=sys.stderr)  # noqa: T201
        else:
            print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
        sys.exit(code)


def describe_error(error: Exception) -> tuple[int, str]:
    """The exit code of an error, and its message."""
    match error:
        case InputError():
            return 2, str(error)
        case typer.TyperException():
            message = error.format_message().replace("Value error, ", "")
            return 2, message if message.startswith("Usage:") else f"{message.rstrip('.')}; see --help"
        case typer.Abort():
            return 3, "cancelled"
        case StepError():
            return 3, str(error)
        case ContactError():
            return 5, str(error)
        case OSError() if known := known_error(error):
            return describe_error(known)
        case ValueError() if "null byte" in str(error):
            return 2, "a path holds a null byte; correct it"
    return 3, f"{type(error).__name__}: {str(error)[:200]} (unexpected; the traceback is in {_write_traceback(error)})"


def _write_traceback(error: Exception) -> str:
    """Writes an error's traceback and the command line to a new file; returns its path, or the reason if it cannot be written."""
    text = json.dumps(sys.argv) + "\n" + "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"cellsignal-{datetime.now(UTC):%Y%m%d-%H%M%S}-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError as failure:
        return f"no file: {failure.strerror}"
    return file.name
