"""Runs a step by hand: a Typer command whose bad input is one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from components.core.errors import InputError, StepError


def run_command(function: Callable[..., Any]) -> None:
    """Runs a function as the command line of its module; its parameters are the flags.

    Exits with 2 on an InputError and with 3 on a StepError, after its message as one line.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app()
    except (InputError, StepError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, InputError) else 3)
