"""Follows a run in Kubeflow Pipelines to its end, and reads the failures that its tasks record in the object store.

Of the API only the run's own state is used. Its task details stop being updated in large runs (Argo compresses the nodes of a
workflow above 1 MB, which KFP does not read), and kfp's wait_for_run_completion never returns for a cancelled run.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.interface import ObjectStorage
from components.core.storage.run_records import FailureRecord
from components.core.storage.runs import read_failures
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint
from pipelines.run.display import duration

ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
DONE = frozenset({"SUCCEEDED", "SKIPPED"})
CANCELING = "CANCELING"
"""Not ended, but being terminated."""
GONE = 404
LOGGED_OUT = (401, 403)


@dataclass(frozen=True)
class Pace:
    """Intervals of following a run, in seconds.

    Attributes:
        settle: after a start, before looking for a run that was started at the same moment.
        poll: between two requests for the run's state.
        retry: before the first retry of a failed request; doubled up to `longest_retry`.
        longest_retry: between two retries.
        outage: without a good answer until contact counts as lost.
        logged_out: the same while the endpoint refuses the login; a token file may be renewed in the meantime.
        ending: how long a terminated run is waited for.
        failures: between two listings of the tasks' failures in the store.
    """

    settle: float = 2.0
    poll: float = 10.0
    retry: float = 2.0
    longest_retry: float = 60.0
    outage: float = 900.0
    logged_out: float = 120.0
    ending: float = 300.0
    failures: float = 60.0


@dataclass
class Follower:
    """Follows one attempt of a run.

    Attributes:
        endpoint: where it runs.
        store: object store of the run.
        key: the run's key in the store.
        deadline: when following ends, by time.monotonic().
        console: where progress is printed.
        pace: intervals.
        failures: recorded failures of this attempt so far, in order of time.
    """

    endpoint: KfpEndpoint
    store: ObjectStorage
    key: str
    deadline: float
    console: Console
    pace: Pace = Pace()
    failures: list[FailureRecord] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)
    _next_read: float = 0.0
    _store_answers: bool = True
    _terminated: float | None = None
    _may_terminate: bool = True

    @property
    def bad_input(self) -> FailureRecord | None:
        """The first failure that every retry would repeat."""
        return next((failure for failure in self.failures if failure.kind == "input"), None)

    def follow(self, run: Any) -> Any:
        """Waits until a run ends; terminates it once a task has failed of bad input.

        Args:
            run: the run, as the API returns it.

        Returns:
            The run as it ended, or as it is `pace.ending` seconds after it was terminated.

        Raises:
            ContactError: no contact for too long, the deadline has passed, or a signal; the run may continue.
            StepError: the run was deleted.
        """
        run_id, started, shown = run.run_id, started_at(run), ""
        again = (
            f"run {run_id} may go on: the same command follows it again; to end it, use Terminate at "
            f"{self.endpoint.run_page(run_id)}"
        )
        with _interruptible(again), self.console.status("") as status:
            while True:
                run = self._get(run_id, again)
                state = str(run.state or "PENDING")
                line = f"run {state.lower()}, {duration((datetime.now(UTC) - started).total_seconds())}"
                status.update(line)
                if state != shown and not self.console.is_terminal:
                    self.console.print(line, highlight=False)
                shown = state
                if state in ENDED or self._too_long_ending():
                    if state not in DONE:
                        self._read_failures(started)
                    return run
                if time.monotonic() >= self._next_read:
                    self._read_failures(started)
                if self.bad_input and self._may_terminate and state != CANCELING:
                    self._terminate(run_id, self.bad_input)
                left = self.deadline - time.monotonic()
                if left <= 0:
                    raise ContactError(f"the deadline of --timeout has passed; {again}")
                time.sleep(min(self.pace.poll, left))

    def _get(self, run_id: str, again: str) -> Any:
        """The run as the API has it; short outages are waited out."""

        def out_of_patience(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            logged_out = isinstance(error, EndpointError) and error.status in LOGGED_OUT
            patience = self.pace.logged_out if logged_out else self.pace.outage
            return (state.seconds_since_start or 0.0) >= min(patience, left)

        left = self.deadline - time.monotonic()

        def announce(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome:
                self._say(f"{state.outcome.exception()}; trying again")

        retrying = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, EndpointError) and (error.passing or error.status in LOGGED_OUT)
            ),
            wait=wait_exponential(self.pace.retry, max=self.pace.longest_retry),
            stop=out_of_patience,
            before_sleep=announce,
            reraise=True,
        )
        try:
            run = retrying(self.endpoint.client.get_run, run_id)
        except EndpointError as error:
            if error.status == GONE:
                raise StepError(f"run {run_id} was deleted in KFP; submit it again") from None
            raise ContactError(f"{error}; {again}") from None
        if retrying.statistics["attempt_number"] > 1:
            self._say("the endpoint answers again")
        return run

    def _read_failures(self, started: datetime) -> None:
        """Reads the failures recorded since the attempt started, and prints new ones; earlier ones are of an earlier attempt."""
        self._next_read = time.monotonic() + self.pace.failures
        try:
            new = read_failures(self.store, self.key, self._read)
        except (InputError, StepError) as error:
            if self._store_answers:
                self._say(f"failures of tasks cannot be read ({error}); the run is still followed")
            self._store_answers = False
            return
        self._store_answers = True
        self._read.update(new)
        found = [record for record in new.values() if record.at >= started]
        known = {(record.task, record.message) for record in self.failures}
        for record in sorted(found, key=lambda record: record.at):
            if (record.task, record.message) not in known:
                self._say(f"{record.task} failed: {record.message}")
                known.add((record.task, record.message))
        self.failures = sorted(self.failures + found, key=lambda record: record.at)

    def _terminate(self, run_id: str, failure: FailureRecord) -> None:
        self._may_terminate = False
        try:
            self.endpoint.client.terminate_run(run_id)
        except EndpointError as error:
            self._may_terminate = error.passing
            if not error.passing:
                self._say(
                    f"{failure.task} failed of bad input, but the run cannot be terminated ({error}); still followed"
                )
            return
        self._terminated = time.monotonic()
        self._say(f"{failure.task} failed of bad input; the run is being terminated")

    def _too_long_ending(self) -> bool:
        return self._terminated is not None and time.monotonic() - self._terminated >= self.pace.ending

    def _say(self, text: str) -> None:
        warn(self.console, text)


def started_at(run: Any) -> datetime:
    """When a run was started, in whole seconds as KFP records it."""
    at: datetime = run.created_at
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).replace(microsecond=0)


def decisive(failures: Sequence[FailureRecord]) -> FailureRecord:
    """The failure that explains why a run failed.

    Every attempt at a task is recorded, even if a later one succeeded: the task that failed most often is the one that used up
    its retries. Bad input comes first, for other tasks may have failed because of it.
    """
    attempts = Counter(failure.task for failure in failures)
    often = [failure for failure in failures if attempts[failure.task] == max(attempts.values())]
    return next((failure for failure in failures if failure.kind == "input"), often[0])


def warn(console: Console, text: str) -> None:
    """Prints a warning."""
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _interruptible(again: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the following, never the run."""

    def leave(_signal: int, _frame: object) -> None:
        raise ContactError(f"no longer followed; {again}")

    earlier = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
