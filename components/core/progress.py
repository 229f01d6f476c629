"""Progress of a running step: one line per message on stdout, and one JSON line per event in an events file.

The environment variable CELLSIGNAL_EVENTS is the path of the events file; `cellsignal run` sets it and draws the terminal
display from the file. Appending one short line is atomic, so steps that run in parallel share the file.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.errors import InputError, StepError, failure_kind, known_error

EVENTS_VARIABLE = "CELLSIGNAL_EVENTS"
TASK_VARIABLE = "CELLSIGNAL_TASK"
"""Distinguishes tasks with equal labels if a program runs many related configurations."""
REPORTED_WAIT = 0.03
"""An epoch's share of time spent waiting for data is printed from this on."""
LONGEST = 2000
"""Characters of a failure's message in events and in the store."""
_labels: dict[str, Any] = {}
_silent = False
_listener: Callable[[dict[str, Any]], None] | None = None


def silence() -> None:
    """Stops all output of this process; another process of its team reports progress."""
    global _silent
    _silent = True


def listen(listener: Callable[[dict[str, Any]], None]) -> None:
    """Sets a function that receives the further events of the current task; it must not raise."""
    global _listener
    _listener = listener


def is_silent() -> bool:
    """Whether another process of the team reports progress."""
    return _silent


def labels() -> dict[str, Any]:
    """The step and labels of the current task."""
    return dict(_labels)


def emit(event: str, **fields: Any) -> None:
    """Appends one event with the labels of the current task to the events file, if there is one, and reports it to the listener."""
    if _silent:
        return
    if _listener is not None:
        _listener({"event": event, **_labels, **fields})
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        return
    own = {"task": os.environ[TASK_VARIABLE]} if TASK_VARIABLE in os.environ else {}
    line = json.dumps({"event": event, "time": round(time.time(), 3), **own, **_labels, **fields}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def say(message: str) -> None:
    """Prints one line, flushed, so that a log file or `kubectl logs` shows it at once."""
    if not _silent:
        print(message, flush=True)  # noqa: T201 - steps print here only


def note(message: str) -> None:
    """A message on stdout and in the events."""
    say(message)
    emit("note", message=message)


def warn(message: str) -> None:
    """A warning on stdout and in the events."""
    say(f"warning: {message}")
    emit("warning", message=message)


def advance(what: str, done: int, total: int) -> None:
    """Progress of a step in units such as plates, wells or sites."""
    emit("advance", what=what, done=done, total=total)


def epoch(**record: Any) -> None:
    """One epoch: epoch, epochs, loss, accuracy (None if not validated), sites_per_s, seconds, seconds_left, data_wait."""
    accuracy = record.get("accuracy")
    shown = "" if accuracy is None else f"  validation accuracy {accuracy:.3f}"
    waited = (
        f", {record['data_wait']:.0%} of the time waiting for data"
        if record.get("data_wait", 0) > REPORTED_WAIT
        else ""
    )
    say(
        f"{record.get('backbone', '')}  epoch {record['epoch']}/{record['epochs']}  loss {record['loss']:.3f}{shown}"
        f"  {record['sites_per_s']:.0f} sites/s{waited}  {record.get('seconds_left', 0):.0f} s left"
    )
    emit("epoch", **record)


@contextmanager
def task(step: str, **labels: Any) -> Iterator[None]:
    """Emits the start, the end and a failure of a step; `labels` distinguish tasks of the same step."""
    _labels.clear()
    _labels.update(step=step, **{k: v for k, v in labels.items() if v is not None})
    global _listener
    _listener = None
    begun = time.monotonic()
    emit("start")
    try:
        yield
    except BaseException as error:
        known = known_error(error) if isinstance(error, OSError) else error
        if isinstance(known, InputError | StepError):
            emit("failed", kind=failure_kind(known), message=str(known)[:LONGEST])
            raise known from None
        emit("failed", kind="step", message=" ".join(f"{type(error).__name__}: {error}".split())[:LONGEST])
        traceback.print_exc(file=sys.stderr)
        raise
    emit("finish", seconds=round(time.monotonic() - begun, 3))
    _labels.clear()
    _listener = None


def parse_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events of an events file's lines; a line that a full disk or a killed step cut short is skipped."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event


def finished_tasks(events: Path | None = None) -> list[dict[str, Any]]:
    """The tasks finished so far: step, labels (fold, cell_type, backbone) and seconds, in order of their end.

    Args:
        events: an events file; None for this process's own, if it has one.
    """
    path = events or (Path(os.environ[EVENTS_VARIABLE]) if os.environ.get(EVENTS_VARIABLE) else None)
    if path is None or not path.is_file():
        return []
    return [
        {key: event[key] for key in ("step", "fold", "cell_type", "backbone", "seconds") if key in event}
        for event in parse_events(path.read_text(encoding="utf-8", errors="replace").splitlines())
        if event["event"] == "finish" and "step" in event
    ]
