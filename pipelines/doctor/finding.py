"""One line of `cellsignal doctor`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from components.core.errors import InputError, StepError

Level = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        what: was looked at.
        level: ok; warning, where a run works without it; failed, where none does.
        said: what is there, or what to do.
    """

    what: str
    level: Level
    said: str


def guarded(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an error of ours or of a disk ends it and is one of them."""
    try:
        yield from check()
    except (InputError, StepError) as error:
        yield Finding(what, "failed", " ".join(str(error).split()))
    except OSError as error:  # a disk that is full or may not be written: what was being looked for
        yield Finding(
            what, "failed", f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
        )
