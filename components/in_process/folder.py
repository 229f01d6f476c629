"""A program's own output folder: this process alone in it, and one configuration for all that it holds."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.config import first_difference
from components.core.errors import InputError, StepError


@contextmanager
def opened(out: Path, described: Mapping[str, Any]) -> Iterator[Path]:
    """Locks a folder for this process and gives its work folder.

    Args:
        out: made where it is not there.
        described: what decides the folder's content; the same for every run in it.

    Raises:
        InputError: the folder cannot be written, another process works in it, or it was begun with another description.
        StepError: the disk was full later.
    """
    work = out / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {out}: another run works in this folder; wait for it or use another") from None
        try:
            path = work / "described.json"
            if path.is_file():
                changed = first_difference(json.loads(path.read_text(encoding="utf-8")), dict(described))
                if changed:
                    raise InputError(f"--out {out}: holds results of another {changed}; use a new folder")
            else:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(dict(described)), encoding="utf-8")
                partial.replace(path)
            yield work
        except OSError as error:
            raise StepError(
                f"{error.filename or out}: cannot be written ({error.strerror}); make room and run again"
            ) from None
