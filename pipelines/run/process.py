"""Python processes of this package: started, followed by their events, and ended with all that they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from components.core.errors import InputError, StepError
from pipelines.run.display import TaskDisplay, event_name

STOP_SECONDS = 10.0
OWN_CODES = (0, 2, 3)
"""Exit codes of a program of ours, which has printed itself what happened."""


def follow(
    arguments: list[str], environment: Mapping[str, str], events: TextIO, display: TaskDisplay, log: Any
) -> None:
    """Runs a Python process in a session of its own, shows its events, and explains its failure.

    Raises:
        InputError: a task found bad input.
        StepError: a task failed.
    """
    failed: list[dict[str, Any]] = []
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while True:
            ended = process.poll() is not None
            for event in _events(events.readlines()):
                display.event(event)
                if event["event"] == "failed":
                    failed.append(event)
            if ended:
                break
            time.sleep(0.2)
    finally:
        _end(process)
    if process.returncode == 0 and not failed:
        return
    log.flush()
    for event in failed:
        if event["kind"] == "input":
            raise InputError(event["message"])
    for event in failed:
        raise StepError(
            f"{event_name(event)} failed: {event['message']} (details in {log.name}); run the same command "
            "again to resume from the finished steps"
        )
    silent = [task.name for task in display.running.values()]
    if silent:
        raise StepError(
            f"{' or '.join(silent)} was ended from outside, perhaps for lack of memory (details in {log.name}); run the "
            "same command again to resume from the finished steps"
        )
    raise StepError(
        f"the run ended with code {process.returncode} (details in {log.name}); run the same command again to resume "
        "from the finished steps"
    )


def _events(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The events of some lines; a line that a full disk cut short is left out."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all it started: SIGTERM to its group, SIGKILL after a while."""
    for how, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
    process.wait()


def run_child(arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS`, which writes to this terminal.

    Args:
        arguments: the interpreter's arguments, for example -m pipelines.studies.growth ...

    Returns:
        Its exit code; 3 if it was cancelled.

    Raises:
        StepError: it was killed, perhaps for memory, or crashed.
    """
    whole = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        # numcodecs makes a semaphore in every worker; Python warns of it if a worker is terminated.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    }
    process = subprocess.Popen([sys.executable, *arguments], env=whole)
    try:
        code = process.wait()
    except StepError:  # cancelled: the program prints that itself; in a terminal it got the same signal
        process.terminate()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code not in OWN_CODES:
        how = f"was killed by signal {-code}, perhaps for memory" if code < 0 else f"ended with code {code}"
        raise StepError(f"{arguments[1]} {how}; run the same command again to resume from what is finished")
    return code
