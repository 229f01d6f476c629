"""Errors that users see. Each message is one line with the file, well or field, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

SHOWN = 5
"""Faults that a message quotes."""
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the limit on the size of a file is reached",
    errno.EIO: "the disk fails",
}
NO_ROOM = frozenset(_DISK_ERRORS) - {errno.EIO}
"""Errors of the operating system that go away with more room."""


class InputError(ValueError):
    """Bad usage or bad input; the command line prints the message and exits with 2.

    Args:
        message: one line.
        places: the faults that the message counts, each with its file and line.
    """

    def __init__(self, message: object = "", places: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.places = tuple(places)


class StoreAccessError(InputError):
    """The store does not answer, or refuses; for a command bad input, for a running task a failure that may pass."""


class StepError(RuntimeError):
    """A step failed for another reason than its input; the command line exits with 3."""


class ContactError(RuntimeError):
    """A command that follows a run lost contact or reached its deadline; the run may continue. The command line exits with 5."""


class MissingObjectError(KeyError):
    """There is no object at this key of the store."""


def failure_kind(error: BaseException) -> Literal["input", "step"]:
    """Whether a task failed because of its input, so that it would fail again, or for another reason."""
    return "input" if isinstance(error, InputError) and not isinstance(error, StoreAccessError) else "step"


def shortened(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def one_line(faults: Sequence[str]) -> str:
    """A single fault as it is; of several their number and the first five."""
    if len(faults) == 1:
        return faults[0]
    more = f" | and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{len(faults)} faults: {' | '.join(faults[:SHOWN])}{more}"


def joined(errors: Sequence[InputError]) -> InputError:
    """Several errors as one."""
    places = [place for error in errors for place in error.places or (str(error),)]
    return InputError(one_line(places), places)


def known_error(error: OSError) -> InputError | StepError | None:
    """An error of the operating system that names a path, as bad input; a full or failing disk as the failure of a step."""
    if error.errno in _DISK_ERRORS:
        disk = f" (mounted at {_mount_point(error.filename)})" if error.filename else ""
        reason = _DISK_ERRORS[error.errno]
        return StepError(f"{error.filename or 'a file'}: {reason}{disk}; make room, then run the same command again")
    if isinstance(error.filename, str | bytes | Path):
        path = os.fsdecode(error.filename)
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            file = next((each for each in (Path(path), *Path(path).parents) if each.is_file()), path)
            return InputError(f"{file}: is a file, and a folder is expected; give another path")
        return InputError(f"{path}: {error.strerror}; give another path, or change its permissions")
    return None


def _mount_point(path: Any) -> Path:
    """Mount point of a path's disk."""
    found = Path(os.fsdecode(path)).absolute()
    while not os.path.ismount(found):
        found = found.parent
    return found
