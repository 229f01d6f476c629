"""A program's own output folder: this process alone in it, and one configuration for all that it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from components.core.config import first_difference
from components.core.errors import InputError, StepError
from components.core.files import locked, write_atomically


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
    with ExitStack() as held:
        try:
            work.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(work / "lock", wait=False))
        except BlockingIOError:
            raise InputError(f"--out {out}: another run works in this folder; wait for it or use another") from None
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
        try:
            path = work / "described.json"
            if path.is_file():
                changed = first_difference(json.loads(path.read_text(encoding="utf-8")), dict(described))
                if changed:
                    raise InputError(f"--out {out}: holds results of another {changed}; use a new folder")
            else:
                write_atomically(path, json.dumps(dict(described)))
            yield work
        except OSError as error:
            raise StepError(
                f"{error.filename or out}: cannot be written ({error.strerror}); make room and run again"
            ) from None
