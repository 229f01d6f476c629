"""Follows a run to its end by its state, with a deadline of its own; short outages of the endpoint are ridden out.

kfp's wait_for_run_completion returns on FAILED without a word, and never on CANCELED.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.core.errors import ContactError, StepError
from pipelines.cluster.endpoint import Endpoint, EndpointError
from pipelines.cluster.submission import ENDED, LEAVING

GONE = 404
LOGGED_OUT = (401, 403)


@dataclass(frozen=True)
class Pace:
    """How patiently a run is followed, in seconds.

    Attributes:
        settle: after a run was started, until it is looked for one that was started at the same moment; KFP counts in seconds.
        poll: between two looks.
        retry: before the first new try after a failed look; doubled up to `longest_retry`.
        longest_retry: between two tries.
        outage: without any good answer, until contact counts as lost.
        logged_out: likewise where the endpoint refuses us; a token file may be renewed meanwhile.
        ending: after a run was asked to end, until it is no longer waited for.
        failures: between two looks into the store for tasks that failed.
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
    """Waits for one run after the other, until one deadline.

    Attributes:
        endpoint: where the runs are.
        deadline: by `clock`.
        again: the sentence that says how to follow the run again.
        shown: hears of the run after every look.
        said: hears of an outage, once, and of its end.
        doomed: asked after every look: why the run cannot succeed any more, so that it is ended; empty as long as it can.
        pace: how patiently.
        clock: seconds that only grow.
        sleep: waits.
    """

    endpoint: Endpoint
    deadline: float
    again: str
    shown: Callable[[Any], None]
    said: Callable[[str], None]
    doomed: Callable[[], str] = lambda: ""
    pace: Pace = Pace()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _ended_at: float | None = None
    _may_end: bool = True

    def follow(self, run_id: str) -> Any:
        """Returns the run when it has ended, or was asked to end and takes too long over it.

        Raises:
            ContactError: no contact for too long, or the deadline has passed.
            StepError: somebody has deleted the run.
        """
        lost_since: float | None = None
        pause = self.pace.retry
        while True:
            try:
                run = self.endpoint.call(self.endpoint.runs.run_service_get_run, run_id=run_id)
            except EndpointError as error:
                if error.status == GONE:
                    raise StepError(f"run {run_id} was deleted in KFP; submit it again") from None
                if not error.passing and error.status not in LOGGED_OUT:
                    raise ContactError(f"{error}; {self.again}") from None
                if lost_since is None:
                    lost_since, pause = self.clock(), self.pace.retry
                    self.said(f"{error}; trying again")
                patience = self.pace.logged_out if error.status in LOGGED_OUT else self.pace.outage
                if self.clock() - lost_since >= patience:
                    raise ContactError(f"{error}; {self.again}") from None
                self._wait(pause)
                pause = min(2 * pause, self.pace.longest_retry)
                continue
            if lost_since is not None:
                self.said("the endpoint answers again")
                lost_since = None
            self.shown(run)
            if str(run.state) in ENDED or self._too_long_over_its_end():
                return run
            if str(run.state) not in LEAVING and self._ended_at is None and self._may_end:
                self._end_if_doomed(run_id)
            self._wait(self.pace.poll)

    def _end_if_doomed(self, run_id: str) -> None:
        why = self.doomed()
        if not why:
            return
        try:
            self.endpoint.call(self.endpoint.runs.run_service_terminate_run, run_id)
        except EndpointError as error:
            if not error.passing:  # else at the next look
                self._may_end = False
                self.said(f"{why}, but the run cannot be ended from here ({error}); it is followed all the same")
            return
        self._ended_at = self.clock()
        self.said(f"{why}; the run is being ended")

    def _too_long_over_its_end(self) -> bool:
        return self._ended_at is not None and self.clock() - self._ended_at >= self.pace.ending

    def _wait(self, seconds: float) -> None:
        left = self.deadline - self.clock()
        if left <= 0:
            raise ContactError(f"the deadline of --timeout has passed; {self.again}")
        self.sleep(min(seconds, left))
