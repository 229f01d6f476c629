"""Follows a run in Kubeflow Pipelines to its end, by what its tasks report to the object store.

Of the API only the run's own state is used. Its task details stop being updated in large runs (Argo compresses the nodes of a
workflow above 1 MB, which KFP does not read), and kfp's wait_for_run_completion never returns for a cancelled run.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from components.core.errors import ContactError, InputError, StepError
from components.core.storage import task_status
from components.core.storage.task_status import Attempt, StatusReader, TaskStatus
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint
from pipelines.cluster.pods import PodReader
from pipelines.cluster.results import ClusterRun
from pipelines.dag import DagTask
from pipelines.options import print_line
from pipelines.run.display import TaskDisplay
from pipelines.task_states import TaskState, task_states

SUCCEEDED = frozenset({"SUCCEEDED", "SKIPPED"})
ENDED = SUCCEEDED | {"FAILED", "CANCELED"}
POLL = 10.0
"""Seconds between two requests for a run's state."""
OUTAGE = 900.0
"""Seconds without an answer until contact counts as lost."""
STUCK = 300.0
"""Seconds without a report from any task after which a run with a failed task is ended, unless one of its pods can work: more
than the two minutes after which Kubeflow retries a task, and a pod's start."""
BLIND = 1800.0
"""As STUCK, if the pods cannot be read: a retried one may wait for its turn in a queue."""
WAITS_SHOWN = 60.0
"""Seconds between two plain lines about what pods wait for."""
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
    """Why a run ended, or was ended, without results."""

    message: str  # one line
    error: type[InputError] | type[StepError]  # the kind of error that it is for the user
    final: bool  # whether another start would end alike, or is not wanted
    cancelled: bool = False  # whether the run was terminated by a user or another process
    fruitless: bool = False  # whether Kubeflow ended this start before a task finished in it


@dataclass
class Follower:
    """Follows the starts of a run, one after the other, and shows the progress of its tasks."""

    endpoint: KfpEndpoint
    run: ClusterRun
    contact: Contact
    display: TaskDisplay
    pods: PodReader
    _reader: StatusReader = field(init=False)
    _attempts: list[Attempt] = field(default_factory=list)
    _states: list[TaskState] = field(default_factory=list)
    _shown: dict[DagTask, TaskState] = field(default_factory=dict)
    _heard: float = 0.0  # when this start was first looked at, or the store last did not answer
    _silence: float = math.inf  # seconds since the last report of any task
    _stuck: bool = False  # at the last look
    _finished: int = 0  # tasks, at the end of the last start
    _warned: set[str] = field(default_factory=set)
    _waits: tuple[str, float] = ("", -math.inf)  # the last plain line about them, and its time

    def __post_init__(self) -> None:
        self._reader = StatusReader(self.run.store, self.run.key)

    def follow(self, started: Any) -> RunFailure | None:
        """Waits until a start of the run ends; returns None if it succeeded.

        It is terminated once a task has failed because of bad input, or once a task has failed and nothing else makes progress:
        Kubeflow ends a run by itself only once all of its pods have ended, which one that cannot start, or one on a lost node,
        never does.

        Raises:
            ContactError: no contact for too long, or the deadline has passed; the run may continue.
            StepError: the run was deleted.
        """
        run_id, contact, shown, cancelled = started.run_id, self.contact, "", False
        to_end = f"to end it, use Terminate at {self.endpoint.run_page(run_id)}"
        contact.advice = f"run {run_id} may go on: the same command follows it again; {to_end}"
        self._heard = time.monotonic()
        while True:
            try:
                # A login proxy that restarts refuses, too.
                run = contact.answered(lambda: self.endpoint.client.get_run(run_id), lambda error: not error.missing)
            except EndpointError:
                raise StepError(f"run {run_id} was deleted in KFP; submit it again") from None
            state = str(run.state or "PENDING")
            cancelled |= state == "CANCELING"
            if state == "FAILED" and cancelled:  # as Argo calls a workflow that was terminated
                state = "CANCELED"
            ended = state in ENDED
            if state != shown:
                print_line(contact.console, f"run {state.lower()}")
                shown = state
            states = self._read(run, state)
            if state in SUCCEEDED:
                return None
            broken = [each for each in states if each.state in ("failed", "lost")]
            # First, because other tasks may have failed because of it.
            bad_input = next((each for each in broken if each.last and each.last.kind == "input"), None)
            if bad_input:
                if state not in ENDED | {"CANCELING"}:
                    self._terminate(run_id, f"{bad_input.task.name} failed because of bad input", to_end)
                failed = f"{bad_input.task.name} failed: {bad_input.failure}"
                return RunFailure(f"{failed}; not submitted again, because it would fail again", InputError, True)
            if state == "CANCELED":
                return RunFailure(f"run {run_id} was cancelled", StepError, True, cancelled=True)
            if ended:
                before, self._finished = self._finished, sum(each.state == "finished" for each in states)
                return RunFailure(self._explanation(run, broken), StepError, False, fruitless=self._finished <= before)
            if state != "CANCELING" and self._is_stuck(states, broken, run_id):
                self._terminate(run_id, "a task has failed and nothing else makes progress", to_end)
                return RunFailure(self._explanation(run, broken), StepError, False)
            left = contact.deadline - time.monotonic()
            if left <= 0:
                raise ContactError(f"the deadline of --timeout has passed; {contact.advice}")
            time.sleep(min(POLL, left))

    def _read(self, run: Any, run_state: str) -> list[TaskState]:
        """The states of the tasks, shown as far as they are new; the earlier ones if the store does not answer."""
        try:
            attempts = self._reader.read()
        except (InputError, StepError) as error:
            self._warn_once(f"the states of tasks cannot be read ({error}); the run is still followed")
            self._heard = time.monotonic()
            return self._states
        if not self._shown:
            begun = [each.status.started for each in attempts if each.status.updated >= run.created_at]
            self.display.joined((datetime.now(UTC) - min(begun)).total_seconds() if begun else 0.0)
        self._attempts = attempts
        self._silence = min((each.silence for each in attempts), default=math.inf)
        states = task_states(self.run.graph, attempts, run.created_at, run_state == "FAILED")
        if run_state in SUCCEEDED:
            states = [each._replace(state="finished") for each in states]
        for state in states:
            before = self._shown.get(state.task)
            # A finished one may copy its outputs again.
            if before is None or (before.state != "finished" and before != state):
                self._show(state, before, run.created_at)
                self._shown[state.task] = state
        self._warn_of_failures(run, attempts, states)
        self.display.waiting = ""
        may_start = [each for each in states if each.ready and each.state not in ("finished", "running")]
        if may_start and run_state not in ENDED | {"CANCELING"}:
            self._show_waiting(run.run_id)
        self._states = states
        return states

    def _show(self, state: TaskState, before: TaskState | None, since: datetime) -> None:
        """Shows a task whose state or progress has changed; `since` is when the run was started."""
        event = {"step": state.task.step, **state.task.labels}
        attempt, shown = state.last.started if state.last else None, None
        if before and before.state == "running" and before.last:
            shown = before.last.started
        working = state.state == "running"
        if shown and not (attempt == shown and working) and state.state != "finished":
            self.display.event({**event, "event": "failed"})
            shown = None
        if shown is None and state.state in ("running", "finished"):
            self.display.event({**event, "event": "start"})
        # A sign of life is no news.
        last, earlier = state.last, before.last if before and shown else None
        if working and last and last.what and (earlier is None or last.progress != earlier.progress):
            self.display.event({**event, "event": "advance", "what": last.what, "done": last.done, "total": last.total})
        elif state.state == "finished":
            worked = last is not None and bool(last.what) and last.updated >= since
            self.display.event({**event, "event": "finish", "seconds": state.seconds, "fetched": not worked})

    def _warn_of_failures(self, run: Any, attempts: Sequence[Attempt], states: Sequence[TaskState]) -> None:
        """Warns once of every attempt of this start that failed, or that was lost: there may be a later one already."""
        known = {each.task.name: each for each in states}
        # If this machine's clock is wrong, attempts look silent at first, until each has reported again.
        settled = run.state in ENDED or time.monotonic() - self._heard > 2 * task_status.INTERVAL
        for attempt, _ in attempts:
            state, key = known.get(attempt.task), f"{attempt.task} {attempt.started}"
            if state is None or attempt.updated < run.created_at or key in self._warned:
                continue
            # A pod of an earlier start may still report while it is being deleted.
            lost = state.state == "lost" if attempt == state.last else attempt.started >= run.created_at
            if attempt.state == "failed" or (attempt.state == "running" and lost and settled):
                self._warn_once(self._why(attempt, run.run_id), key)

    def _why(self, attempt: TaskStatus, run_id: str) -> str:
        """Why an attempt failed or, if it left no message, how its pod ended."""
        if attempt.state == "failed":
            return f"{attempt.task} failed: {self.pods.why_failed(attempt, run_id)}"
        return f"{attempt.task} was lost: {self.pods.why_lost(attempt, run_id)}"

    def _show_waiting(self, run_id: str) -> None:
        """Shows what pods that have not started wait for, and warns of those that cannot start, or failed before they reported."""
        for pod in self.pods.read(run_id):
            if pod.problem:
                self._warn_once(f"{pod.work} waits: {pod.problem}", key=pod.name + pod.state)
        for name, reason in self.pods.unreported(run_id, self._attempts).items():
            self._warn_once(reason, key=name)
        waits, now = self.pods.waits(run_id), time.monotonic()
        self.display.waiting = waits
        if (
            waits
            and not self.contact.console.is_terminal
            and waits != self._waits[0]
            and now - self._waits[1] > WAITS_SHOWN
        ):
            print_line(self.contact.console, f"waiting: {waits}")
            self._waits = waits, now

    def _is_stuck(self, states: Sequence[TaskState], broken: Sequence[TaskState], run_id: str) -> bool:
        """Whether a task has failed and nothing else in the run makes progress, by two looks: a pod may have ended during one."""
        before, self._stuck = self._stuck, False
        quiet = min(time.monotonic() - self._heard, self._silence)
        if not broken or any(each.state == "running" for each in states) or quiet < STUCK:
            return False
        pods = self.pods.read(run_id, 0.0 if before else None)
        if self.pods.known:
            self._stuck = not any(pod.step and pod.state != "ended" and not pod.problem for pod in pods)
        else:
            self._stuck = quiet > BLIND
        return before and self._stuck

    def _explanation(self, run: Any, broken: Sequence[TaskState]) -> str:
        """Why the run failed: the message of a failed task, else of a lost one, else Kubeflow's."""
        for state in sorted(broken, key=lambda each: each.state == "lost"):
            if state.last:
                return self._why(state.last, run.run_id)
        error = " ".join(str(run.error.message).split()) if run.error and run.error.message else ""
        problems = [f"{pod.work}: {pod.problem}" for pod in self.pods.read(run.run_id, 0.0) if pod.problem]
        reasons = [*self.pods.unreported(run.run_id, self._attempts).values(), *problems, error]
        reason = next(filter(None, reasons), "no task left a message, as when a pod cannot start")
        return f"run {run.run_id} failed: {reason}"

    def _terminate(self, run_id: str, reason: str, to_end: str) -> None:
        """Terminates the run; only warns if that is refused."""
        result = "; the run is being terminated"
        try:
            self.contact.answered(lambda: self.endpoint.client.terminate_run(run_id))
        except EndpointError as error:
            result = f", but the run cannot be terminated ({error}); {to_end}"
        warn(self.contact.console, f"{reason}{result}")

    def _warn_once(self, text: str, key: str = "") -> None:
        """Warns unless it has warned with this key, or of the same text, before."""
        if (key or text) not in self._warned:
            self._warned.add(key or text)
            warn(self.contact.console, text)


def warn(console: Console, text: str) -> None:
    """Prints a warning."""
    print_line(console, text, "yellow")


@contextlib.contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise ContactError with advice: they end the waiting, never the run."""

    def leave(_signal: int, _frame: object) -> None:
        raise ContactError(f"no longer followed; {advice()}")

    earlier = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
