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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.object_store import ObjectStore
from components.core.storage.run_records import FailureRecord
from components.core.storage.runs import read_failures
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint
from pipelines.options import print_line
from pipelines.run.display import duration

DONE = frozenset({"SUCCEEDED", "SKIPPED"})
ENDED = DONE | {"FAILED", "CANCELED"}
POLL = 10.0
"""Seconds between two requests for a run's state."""
OUTAGE = 900.0
"""Seconds without an answer until contact counts as lost."""
_Answer = TypeVar("_Answer")


@dataclass
class Contact:
    """Requests to an endpoint that are repeated while it does not answer, up to the deadline by time.monotonic().

    `advice` is what the user can do once contact is lost; it changes as the run proceeds.
    """

    deadline: float
    console: Console
    advice: str

    def answered(
        self, request: Callable[[], _Answer], passing: Callable[[EndpointError], bool] = lambda error: error.passing
    ) -> _Answer:
        """The result of a request, repeated while its error may pass.

        Raises:
            ContactError: no answer for OUTAGE, or the deadline has passed.
            EndpointError: it refuses.
        """

        def report(state: RetryCallState) -> None:
            if state.attempt_number == 1 and state.outcome:
                warn(self.console, f"{state.outcome.exception()}; trying again")

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, EndpointError) and passing(error)),
            wait=wait_exponential(POLL / 5, max=6 * POLL),
            stop=stop_after_delay(min(OUTAGE, self.deadline - time.monotonic())),
            before_sleep=report,
            reraise=True,
        )
        try:
            answer = retrying(request)
        except EndpointError as error:
            if passing(error):
                raise ContactError(f"{error}; {self.advice}") from None
            raise
        if retrying.statistics["attempt_number"] > 1:
            warn(self.console, "the endpoint answers again")
        return answer


class RunFailure(NamedTuple):
    """Why a run ended without results: the message, the kind of error, and whether another attempt would end alike."""

    message: str
    error: type[InputError] | type[StepError]
    final: bool


@dataclass
class Follower:
    """Follows one attempt of a run; `failures` are those that its tasks recorded, by their keys in the store."""

    endpoint: KfpEndpoint
    store: ObjectStore
    key: str
    contact: Contact
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def follow(self, run: Any) -> RunFailure | None:
        """Waits until a run ends, and terminates it once a task has failed of bad input; returns None if it succeeded.

        Raises:
            ContactError: no contact for too long, or the deadline has passed; the run may continue.
            StepError: the run was deleted.
        """
        run_id, console, contact, shown = run.run_id, self.contact.console, self.contact, ""
        page = self.endpoint.run_page(run_id)
        to_end = f"to end it, use Terminate at {page}"
        contact.advice = f"run {run_id} may go on: the same command follows it again; {to_end}"
        with console.status("") as status:
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
                if state in DONE:
                    return None
                self._read_failures(run.created_at)
                # First, because other tasks may have failed because of it.
                bad_input = next((each for each in self.failures.values() if each.kind == "input"), None)
                if bad_input:
                    if state not in ENDED:
                        self._terminate(run_id, bad_input.task, to_end)
                    failed = f"{bad_input.task} failed: {bad_input.message}"
                    return RunFailure(f"{failed}; not submitted again, because it would fail again", InputError, True)
                if state == "CANCELED":
                    return RunFailure(f"run {run_id} was cancelled", StepError, True)
                if state in ENDED:
                    return RunFailure(self._explanation(run), StepError, False)
                left = contact.deadline - time.monotonic()
                if left <= 0:
                    raise ContactError(f"the deadline of --timeout has passed; {contact.advice}")
                time.sleep(min(POLL, left))

    def _explanation(self, run: Any) -> str:
        """The message of the failed task, else the API's.

        Every attempt at a task is recorded, even if a later one succeeded: the task that failed most often used up its retries.
        """
        if self.failures:
            attempts = Counter(failure.task for failure in self.failures.values())
            failure = max(self.failures.values(), key=lambda failure: attempts[failure.task])
            return f"{failure.task} failed: {failure.message}"
        error = " ".join(str(run.error.message).split()) if run.error and run.error.message else ""
        return (
            f"run {run.run_id} failed: {error or 'no task left a message, as when a pod is evicted or out of memory'}"
        )

    def _read_failures(self, since: datetime) -> None:
        """Reads the failures recorded since the last time, and prints those of this attempt, which began at a time.

        Tasks of an attempt that was terminated may record theirs until they are gone.
        """
        try:
            new = read_failures(self.store, self.key, self.failures)
        except (InputError, StepError) as error:
            self._warn_once(f"failures of tasks cannot be read ({error}); the run is still followed")
            return
        for key, record in sorted(new.items(), key=lambda item: item[1].at):
            if record.at >= since:
                self._warn_once(f"{record.task} failed: {record.message}")
                self.failures[key] = record

    def _terminate(self, run_id: str, task: str, to_end: str) -> None:
        """Terminates the run because a task failed of bad input; only warns if that is refused."""
        result = "; the run is being terminated"
        try:
            self.contact.answered(lambda: self.endpoint.client.terminate_run(run_id))
        except EndpointError as error:
            result = f", but the run cannot be terminated ({error}); {to_end}"
        warn(self.contact.console, f"{task} failed of bad input{result}")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warn(self.contact.console, text)


def warn(console: Console, text: str) -> None:
    """Prints a warning."""
    print_line(console, text, "yellow")


@contextlib.contextmanager
def interruptible(contact: Contact) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise ContactError: they end the waiting, never the run."""

    def leave(_signal: int, _frame: object) -> None:
        raise ContactError(f"no longer followed; {contact.advice}")

    earlier = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
