"""Follows a run in Kubeflow Pipelines to its end, and reads the failures that its tasks record in the object store.

Of the API only the run's own state is used. Its task details stop being updated in large runs (Argo compresses the nodes of a
workflow above 1 MB, which KFP does not read), and kfp's wait_for_run_completion never returns for a cancelled run.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from rich.console import Console
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import FailureRecord
from components.core.storage.runs import read_failures
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint
from pipelines.options import print_line
from pipelines.run.display import duration

DONE = frozenset({"SUCCEEDED", "SKIPPED"})
ENDED = DONE | {"FAILED", "CANCELED"}
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Pace:
    """Intervals of following a run, in seconds.

    Attributes:
        poll: between two requests for the run's state.
        settle: after a start, before looking for a run that another process started at the same moment.
        outage: without an answer until contact counts as lost.
        terminate: until a terminated run is left to end by itself.
    """

    poll: float = 10.0
    settle: float = 2.0
    outage: float = 900.0
    terminate: float = 300.0


@dataclass(frozen=True)
class Contact:
    """Requests to an endpoint that are repeated while it does not answer.

    Attributes:
        pace: intervals.
        deadline: when to give up, by time.monotonic().
        console: where an outage is reported.
        advice: what the user can do once contact is lost.
    """

    pace: Pace
    deadline: float
    console: Console
    advice: str

    def answered(
        self, request: Callable[[], _Answer], passing: Callable[[EndpointError], bool] = lambda error: error.passing
    ) -> _Answer:
        """The result of a request, repeated while its error may pass.

        Raises:
            ContactError: no answer for `pace.outage`, the deadline has passed, or a signal.
            EndpointError: it refuses.
        """

        def report(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome:
                warn(self.console, f"{state.outcome.exception()}; trying again")

        patience = min(self.pace.outage, self.deadline - time.monotonic())
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, EndpointError) and passing(error)),
            wait=wait_exponential(self.pace.poll / 5, max=6 * self.pace.poll),
            stop=lambda state: (state.seconds_since_start or 0.0) >= patience,
            before_sleep=report,
            reraise=True,
        )
        try:
            with interruptible(self.advice):
                answer = retrying(request)
        except EndpointError as error:
            if passing(error):
                raise ContactError(f"{error}; {self.advice}") from None
            raise
        if retrying.statistics["attempt_number"] > 1:
            warn(self.console, "the endpoint answers again")
        return answer


@dataclass
class Follower:
    """Follows one attempt of a run, whose key in the store is `key`; `failures` are those that its tasks recorded, by time."""

    endpoint: KfpEndpoint
    store: ObjectStore
    key: str
    contact: Contact
    failures: list[FailureRecord] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)
    _store_answers: bool = True

    @property
    def bad_input(self) -> FailureRecord | None:
        """The first failure that every retry would repeat."""
        return next((failure for failure in self.failures if failure.kind == "input"), None)

    def follow(self, run: Any) -> Any:
        """Waits until a run ends, or terminates it once a task has failed of bad input.

        Args:
            run: the run, as the API returns it.

        Returns:
            The run in its last known state. One that was terminated has ended by then, or takes more than five minutes to end.

        Raises:
            ContactError: no contact for too long, the deadline has passed, or a signal; the run may continue.
            StepError: the run was deleted.
        """
        run_id, console, pace = run.run_id, self.contact.console, self.contact.pace
        page = self.endpoint.run_page(run_id)
        again = f"run {run_id} may go on: the same command follows it again; to end it, use Terminate at {page}"
        contact = replace(self.contact, advice=again)
        shown, terminated = "", None
        with interruptible(again), console.status("") as status:
            while True:
                try:
                    # A login proxy that restarts refuses, too.
                    run = contact.answered(
                        lambda: self.endpoint.client.get_run(run_id), lambda error: not error.missing
                    )
                except EndpointError:
                    raise StepError(f"run {run_id} was deleted in KFP; submit it again") from None
                state = str(run.state or "PENDING")
                line = f"run {state.lower()}, {duration((datetime.now(UTC) - run.created_at).total_seconds())}"
                status.update(line)
                if state != shown and not console.is_terminal:
                    console.print(line, highlight=False)
                shown = state
                if state not in DONE:
                    self._read_failures()
                if state in ENDED:
                    return run
                if self.bad_input and terminated is None:
                    terminated = self._terminate(run_id, self.bad_input, page)
                    give_up = time.monotonic() + pace.terminate
                if terminated and time.monotonic() >= give_up:
                    return run
                left = self.contact.deadline - time.monotonic()
                if left <= 0:
                    raise ContactError(f"the deadline of --timeout has passed; {again}")
                time.sleep(min(pace.poll, left))

    def explanation(self, run: Any) -> str:
        """Why a run ended without results: the message of the failed task, else that of the API.

        Every attempt at a task is recorded, even if a later one succeeded: the task that failed most often is the one that used
        up its retries. Bad input comes first, for other tasks may have failed because of it.
        """
        if self.failures:
            attempts = Counter(failure.task for failure in self.failures)
            often = max(self.failures, key=lambda failure: attempts[failure.task])
            failure = self.bad_input or often
            return f"{failure.task} failed: {failure.message}"
        error = " ".join(str(run.error.message).split()) if run.error and run.error.message else ""
        return (
            f"run {run.run_id} failed: {error or 'no task left a message, as when a pod is evicted or out of memory'}"
        )

    def _read_failures(self) -> None:
        """Reads the failures recorded since the last time, and prints them, each task's message once."""
        try:
            new = read_failures(self.store, self.key, self._read)
        except (InputError, StepError) as error:
            if self._store_answers:
                warn(self.contact.console, f"failures of tasks cannot be read ({error}); the run is still followed")
            self._store_answers = False
            return
        self._store_answers = True
        self._read.update(new)
        for record in sorted(new.values(), key=lambda record: record.at):
            if (record.task, record.message) not in {(known.task, known.message) for known in self.failures}:
                warn(self.contact.console, f"{record.task} failed: {record.message}")
            self.failures.append(record)

    def _terminate(self, run_id: str, failure: FailureRecord, page: str) -> bool:
        """Terminates the run; False if that is refused."""
        failed = f"{failure.task} failed of bad input"
        by_hand = f"to end the run, use Terminate at {page}"
        try:
            replace(self.contact, advice=by_hand).answered(lambda: self.endpoint.client.terminate_run(run_id))
        except EndpointError as error:
            warn(self.contact.console, f"{failed}, but the run cannot be terminated ({error}); {by_hand}")
            return False
        warn(self.contact.console, f"{failed}; the run is being terminated")
        return True


def warn(console: Console, text: str) -> None:
    """Prints a warning."""
    print_line(console, text, "yellow")


@contextlib.contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the waiting, never the run."""

    def leave(_signal: int, _frame: object) -> None:
        raise ContactError(f"no longer followed; {advice}")

    earlier = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
