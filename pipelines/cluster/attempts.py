"""A run that is submitted: its start, its attempts, and its end where somebody waits."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError, StepError
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import join_address
from components.core.storage.run_outcome import FailureRecord, forget_failures
from pipelines.cluster.endpoint import Endpoint, EndpointError
from pipelines.cluster.failure_watch import FailureWatch, begun, telling
from pipelines.cluster.following import Follower, Pace
from pipelines.cluster.identity import Identity
from pipelines.cluster.outcome import fetch
from pipelines.cluster.run_display import RunDisplay
from pipelines.cluster.submission import Place, keep_first, run_in_progress, start
from pipelines.cluster.tasks import failed_tasks, message_of

KFP_FOLDER = "kfp"
"""Of the store, where Kubeflow keeps the artifacts that it hands from task to task."""


@dataclass(frozen=True)
class Work:
    """What a run does, as far as trainings and predictions differ.

    Attributes:
        tasks: how many it has, by step.
        left: brings what there is of a failed run into the folder of its results; returns a sentence that says so.
        table: shows the metrics of one that succeeded; None where there is nothing to show.
    """

    tasks: Mapping[str, int]
    left: Callable[[Path], str]
    table: Callable[[Mapping[str, Any]], Table | None]


@dataclass
class Submission:
    """A run that is being submitted.

    Attributes:
        config: of the run.
        work: what it does.
        endpoint: where.
        place: pipeline and experiment there.
        identity: names of the run.
        parameters: of the pipeline.
        store: of the run.
        console: where it is shown.
        pace: how patiently it is followed.
    """

    config: RunConfig
    work: Work
    endpoint: Endpoint
    place: Place
    identity: Identity
    parameters: Mapping[str, Any]
    store: ObjectStorage
    console: Console
    pace: Pace

    def begin(self) -> Any:
        """The run: one that is in progress with the same content, else a new one."""
        run = run_in_progress(self.endpoint, self.place.experiment, self.identity.key)
        how = "is in progress with the same content, so that no second one is started"
        if run is None:
            forget_failures(self.store, self.identity.key)
            account, store = self.config.cluster.service_account, self.config.store
            root = f"{join_address(store.bucket, store.prefix)}/{KFP_FOLDER}"
            mine = start(self.endpoint, self.place, self.identity, dict(self.parameters), account, root)
            run = self._first(mine)
            how = "started" if run.run_id == mine.run_id else f"{how}; somebody started it at the same moment"
        elif run.runtime_config and (run.runtime_config.parameters or {}).get("truth", "") != self.parameters["truth"]:
            warn(self.console, "the run in progress was given another --truth, which its report will score by")
        self.console.print(f"run {self.identity.run} {how}", highlight=False, soft_wrap=True)
        self.console.print(self.endpoint.run_page(run.run_id), highlight=False, soft_wrap=True)
        return run

    def _first(self, mine: Any) -> Any:
        """The run that was started, or the one that somebody else started just before."""
        time.sleep(self.pace.settle)
        try:
            return keep_first(self.endpoint, self.place.experiment, self.identity.key, mine)
        except EndpointError as error:
            page = self.endpoint.run_page(mine.run_id)
            warn(
                self.console,
                f"a run of the same content was started at the same moment; end one of them, here {page} ({error})",
            )
            return mine

    def wait(self, run: Any, out: Path, seconds: float, resubmit: int) -> None:
        """Follows the run, submits it again where that is asked for, and fetches what it leaves.

        Args:
            run: as `begin` gives it.
            out: folder of the results.
            seconds: until following ends.
            resubmit: how often it is submitted again after it failed.

        Raises:
            InputError: a task failed of its input, for which the run was ended unless it had failed by itself.
            StepError: the run failed otherwise, or was cancelled.
            ContactError: contact or the deadline was lost; the run may go on.
        """
        deadline = time.monotonic() + seconds
        while True:
            run, watch = self._followed(run, deadline)
            state, bad_input = str(run.state), watch.bad_input
            if state in ("SUCCEEDED", "SKIPPED"):
                fetched(self.config, self.store, self.identity.key, self.work, out, self.console)
                return
            cancelled = state == "CANCELED" and bad_input is None
            said = self._explain(run, watch.found) if not cancelled else f"run {run.run_id} was cancelled"
            if not resubmit or bad_input or cancelled:
                break
            resubmit -= 1
            warn(self.console, f"{said}; submitted again under the same key ({resubmit} more tries after this one)")
            run = self.begin()
        left = self.work.left(out)
        if bad_input:
            said += "; not tried again, since it would fail again"
        whole = f"{said}; {left}; see {self.endpoint.run_page(run.run_id)}"
        raise InputError(whole) if bad_input else StepError(whole)

    def _followed(self, run: Any, deadline: float) -> tuple[Any, FailureWatch]:
        """An attempt at its end, and what its tasks said."""
        page = self.endpoint.run_page(run.run_id)
        again = f"run {run.run_id} may go on: the same command follows it again; to end it, use Terminate at {page}"
        with (
            _stops_following(again),
            RunDisplay(self.work.tasks, self._where(), self.console) as display,
        ):
            watch = FailureWatch(self.store, self.identity.key, begun(run), display.say, self.pace.failures)

            def doomed() -> str:
                watch.look()
                return f"{watch.bad_input.task} failed of bad input" if watch.bad_input else ""

            follower = Follower(self.endpoint, deadline, again, display.show, display.say, doomed, self.pace)
            run = follower.follow(run.run_id)
        if str(run.state) not in ("SUCCEEDED", "SKIPPED"):
            try:
                watch.read()
            except (InputError, StepError) as error:
                warn(self.console, f"what its tasks said is not known ({error})")
        return run, watch

    def _where(self) -> str:
        """What to look at where pods do not start."""
        cluster = self.config.cluster
        what = f"an image or secret {cluster.store_secret}" if cluster.store_secret else "or an image"
        return f"look at `kubectl get pods,workloads,events -n {cluster.namespace}` for a quota, a queue, {what}"

    def _explain(self, run: Any, failures: Sequence[FailureRecord]) -> str:
        """Why a run failed: what the failing task said, else what the API knows."""
        if failures:
            told = telling(failures)
            return f"{told.task} failed: {told.message}"
        names, message = failed_tasks(run, self.work.tasks), message_of(run)
        who = " and ".join(names) if names else f"run {run.run_id}"
        return f"{who} failed" + (
            f": {message}" if message else " and left no message, as when a pod is evicted or out of memory"
        )


def fetched(config: RunConfig, store: ObjectStorage, key: str, work: Work, out: Path, console: Console) -> None:
    """Brings the results of a run into a folder, and shows them.

    Args:
        config: of the run.
        store: of the run.
        key: of the run.
        work: what it does.
        out: the folder.
        console: where they are shown.

    Raises:
        InputError: they are not there.
        StepError: the folder cannot be written.
    """
    names = fetch(store, key, out, config)
    table = work.table(json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    if table is not None:
        console.print(table)
    console.print(f"{len(names)} files of results in {out}", highlight=False, soft_wrap=True)
    console.print(f"report: {(out / 'report.html').resolve()}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _stops_following(again: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the following, never the run."""

    def leave(_signal: int, _frame: object) -> None:
        raise ContactError(f"no longer followed; {again}")

    earlier = {each: signal.signal(each, leave) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)


def warn(console: Console, text: str) -> None:
    """A line that should be looked at."""
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
