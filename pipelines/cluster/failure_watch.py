"""What a run's tasks leave in the store when they fail: watched while the run goes on, read when it has ended.

Kubeflow tries every failed task again, also one that fails of its input: it has no rule for exit codes. So the watch finds it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from components.core.errors import InputError, StepError
from components.core.storage.interface import ObjectStorage
from components.core.storage.run_outcome import FailureRecord, failure_keys, failures_at

LONGEST = 900.0
"""Seconds between two looks at most, while the store does not answer."""


@dataclass
class FailureWatch:
    """Reads the failures of one attempt, each once.

    Attributes:
        store: of the run.
        key: of the run.
        since: when the attempt began; what was recorded before is of an earlier one.
        said: hears that the store does not answer, once, and that it does again.
        every: seconds between two looks; doubled with each that the store does not answer.
        clock: seconds that only grow.
        found: failures so far, in the order of their time.
    """

    store: ObjectStorage
    key: str
    since: datetime
    said: Callable[[str], None]
    every: float
    clock: Callable[[], float] = time.monotonic
    found: list[FailureRecord] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _next: float | None = None
    _pause: float = 0.0

    def look(self) -> None:
        """Reads what is new, unless it was looked a moment ago; a store that does not answer is told of, and asked later."""
        if self._next is not None and self.clock() < self._next:
            return
        try:
            self.read()
        except (InputError, StepError) as error:
            if not self._pause:
                self.said(
                    f"whether a task failed of bad input is not known ({error}); the run is followed all the same"
                )
            self._pause = min(2 * self._pause or self.every, LONGEST)
        else:
            if self._pause:
                self.said("the store answers again")
            self._pause = 0.0
        self._next = self.clock() + max(self._pause, self.every)

    def read(self) -> None:
        """Reads what is new.

        Raises:
            InputError: the store refuses us.
            StepError: it does not answer.
        """
        new = [key for key in failure_keys(self.store, self.key) if key not in self._seen]
        self.found += [record for record in failures_at(self.store, new) if record.at >= self.since]
        self.found.sort(key=lambda record: record.at)
        self._seen.update(new)

    @property
    def bad_input(self) -> FailureRecord | None:
        """The first failure for which no further try helps."""
        return next((failure for failure in self.found if failure.kind == "input"), None)


def begun(run: Any) -> datetime:
    """When a run was started, which KFP knows in whole seconds."""
    at: datetime = run.created_at
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).replace(microsecond=0)


def telling(failures: Sequence[FailureRecord]) -> FailureRecord:
    """The failure that tells why a run failed.

    A task records each of its tries, also where a later one went well: the one that was tried most often has used them up. Bad
    input comes before, for other tasks may have failed of it.
    """
    tries = Counter(failure.task for failure in failures)
    often = [failure for failure in failures if tries[failure.task] == max(tries.values())]
    return next((failure for failure in failures if failure.kind == "input"), often[0])
