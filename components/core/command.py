"""Runs a step by hand: a Typer command whose bad input is one line on stderr and exit code 2."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from components.core.errors import InputError, StepError


def cancel_on_signals(advice: str) -> None:
    """SIGINT and SIGTERM raise a StepError, once: a second signal must not disturb the clean-up of the first.

    Args:
        advice: what comes after `cancelled; `.
    """

    def cancel(_signal: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise StepError(f"cancelled; {advice}")

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, cancel)


def run_command(function: Callable[..., Any]) -> None:
    """Runs a function as the command line of its module; its parameters are the flags.

    Exits with 2 on an InputError and with 3 on a StepError, after its message as one line.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(function)
    try:
        app()
    except (InputError, StepError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, InputError) else 3)
