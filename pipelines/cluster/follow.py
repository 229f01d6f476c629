"""Follows a run in Kubeflow Pipelines to its end, by what its tasks report to the object store.

Of the API only the run's own state is used. Its task details stop being updated in large runs (Argo compresses the nodes of a
workflow above 1 MB, which KFP does not read), and kfp's wait_for_run_completion never returns for a cancelled run.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.task_status import StatusReader
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
SETTLED = 30.0
"""Seconds without progress after which a run counts as stuck if a task has failed and all others need its output."""
STUCK = 300.0
"""As SETTLED, if other tasks could start, or the failed one was killed. Kubeflow retries a deleted pod after two minutes."""
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
    """Why a run ended, or was ended, without results.

    Attributes:
        message: one line.
        error: the kind of error that it is for the user.
        final: whether another start would end alike, or is not wanted.
        cancelled: whether somebody cancelled the run in KFP.
    """

    message: str
    error: type[InputError] | type[StepError]
    final: bool
    cancelled: bool = False


@dataclass
class Follower:
    """Follows the starts of a run, one after the other, and shows the progress of its tasks."""

    endpoint: KfpEndpoint
    run: ClusterRun
    contact: Contact
    display: TaskDisplay
    pods: PodReader
    _reader: StatusReader = field(init=False)
    _shown: dict[DagTask, TaskState] = field(default_factory=dict)
    _moved: float = field(default_factory=time.monotonic)  # when a task last reported progress
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._reader = StatusReader(self.run.store, self.run.key)

    def follow(self, started: Any) -> RunFailure | None:
        """Waits until a start of the run ends; returns None if it succeeded.

        It is terminated once a task has failed of bad input, or once a task has failed and nothing else makes progress: which
        failures Kubeflow retries, and when, is the installation's choice.

        Raises:
            ContactError: no contact for too long, or the deadline has passed; the run may continue.
            StepError: the run was deleted.
        """
        run_id, contact, shown = started.run_id, self.contact, ""
        to_end = f"to end it, use Terminate at {self.endpoint.run_page(run_id)}"
        contact.advice = f"run {run_id} may go on: the same command follows it again; {to_end}"
        self._moved = time.monotonic()
        while True:
            try:
                # A login proxy that restarts refuses, too.
                run = contact.answered(lambda: self.endpoint.client.get_run(run_id), lambda error: not error.missing)
            except EndpointError:
                raise StepError(f"run {run_id} was deleted in KFP; submit it again") from None
            state = str(run.state or "PENDING")
            ended = state in ENDED
            if state != shown:
                print_line(contact.console, f"run {state.lower()}")
                shown = state
            states = self._read(run, ended)
            if state in SUCCEEDED:
                return None
            broken = [each for each in states if each.state in ("failed", "lost")]
            # First, because other tasks may have failed because of it.
            bad_input = next((each for each in broken if each.last and each.last.kind == "input"), None)
            if bad_input:
                if not ended:
                    self._terminate(run_id, f"{bad_input.task.name} failed of bad input", to_end)
                failed = f"{bad_input.task.name} failed: {bad_input.failure}"
                return RunFailure(f"{failed}; not submitted again, because it would fail again", InputError, True)
            if state == "CANCELED":
                return RunFailure(f"run {run_id} was cancelled", StepError, True, cancelled=True)
            if ended:
                return RunFailure(self._explanation(run, broken), StepError, False)
            if self._is_stuck(states, broken, run_id):
                self._terminate(run_id, "a task has failed and nothing else makes progress", to_end)
                return RunFailure(self._explanation(run, broken), StepError, False)
            left = contact.deadline - time.monotonic()
            if left <= 0:
                raise ContactError(f"the deadline of --timeout has passed; {contact.advice}")
            time.sleep(min(POLL, left))

    def _read(self, run: Any, ended: bool) -> list[TaskState]:
        """The states of the tasks, shown as far as they are new; the earlier ones if the store does not answer."""
        try:
            attempts = self._reader.read()
        except (InputError, StepError) as error:
            self._warn_once(f"the states of tasks cannot be read ({error}); the run is still followed")
            self._moved = time.monotonic()  # nothing is known
            return list(self._shown.values())
        states = task_states(self.run.graph, attempts, run.created_at, ended)
        for state in states:
            before = self._shown.get(state.task)
            if before is not None and before[:4] == state[:4]:
                continue
            if before is None or state.last != before.last:  # reported something, be it that it is alive
                self._moved = time.monotonic()
            if before is None or before.state != "finished":  # else it copies its outputs again
                self._show(state, before, run.run_id)
                self._shown[state.task] = state
        if any(each.state == "waiting" and each.ready for each in states):
            self._show_waiting(run.run_id)
        return states

    def _show(self, state: TaskState, before: TaskState | None, run_id: str) -> None:
        """Shows a task whose state or progress has changed."""
        event = {"step": state.task.step, **state.task.labels}
        if state.state == "running" and state.last:
            if before is None or before.state != "running":
                self.display.event({**event, "event": "start"})
            if state.last.what:
                progress = {"what": state.last.what, "done": state.last.done, "total": state.last.total}
                self.display.event({**event, "event": "advance", **progress})
        elif state.state == "finished":
            self.display.event({**event, "event": "start"})
            self.display.event({**event, "event": "finish", "seconds": state.last.seconds if state.last else 0.0})
        elif state.state in ("failed", "lost"):
            self.display.event({**event, "event": "failed"})
            self._warn_once(f"{state.task.name} failed: {self._reason(state, run_id)}")

    def _show_waiting(self, run_id: str) -> None:
        """Shows what pods that have not started wait for, and warns of those that cannot start."""
        for pod in self.pods.read(run_id):
            if pod.problem:
                self._warn_once(f"{pod.step or 'a driver of Kubeflow'} waits: {pod.problem}", key=pod.name + pod.state)
        self.display.waiting = self.pods.waits(run_id)

    def _reason(self, state: TaskState, run_id: str) -> str:
        """Why a task failed; of one that left no message, how its pod ended."""
        if state.state != "lost" or state.last is None:
            return state.failure
        pods = {pod.name: pod for pod in self.pods.read(run_id)}
        pod = pods.get(state.last.pod)
        if pods and state.last.pod and pod is None:
            return f"its pod {state.last.pod} was deleted"
        if pod is None or pod.state != "ended":
            return f"{state.failure} (on node {state.last.node})"
        advice = ""
        if pod.out_of_memory:
            have = getattr(self.run.config.cluster.steps, state.task.step).memory_gib
            advice = f"; raise cluster.steps.{state.task.step}.memory_gib, which is {have:g}"
        return f"its pod {pod.name} on node {state.last.node} was {pod.reason}{advice}"

    def _is_stuck(self, states: Sequence[TaskState], broken: Sequence[TaskState], run_id: str) -> bool:
        """Whether a task has failed and nothing else in the run makes progress."""
        if not broken or any(each.state == "running" for each in states):
            return False
        # Tasks that could start may be about to, and a lost pod may be retried by Kubeflow.
        may_move = any(each.state == "lost" or (each.state == "waiting" and each.ready) for each in states)
        if time.monotonic() - self._moved < (STUCK if may_move else SETTLED):
            return False
        return not any(pod.step and pod.state in ("queued", "starting", "running") for pod in self.pods.read(run_id))

    def _explanation(self, run: Any, broken: Sequence[TaskState]) -> str:
        """Why the run failed: the message of a failed task, else of a lost one, else Kubeflow's."""
        for state in sorted(broken, key=lambda each: each.state == "lost"):
            return f"{state.task.name} failed: {self._reason(state, run.run_id)}"
        problems = [f"{pod.step or 'a driver'}: {pod.problem}" for pod in self.pods.read(run.run_id) if pod.problem]
        error = " ".join(str(run.error.message).split()) if run.error and run.error.message else ""
        reason = (problems or [error])[0] or "no task left a message, as when a pod cannot start"
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
        if (key or text) not in self._warned:
            self._warned.add(key or text)
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
