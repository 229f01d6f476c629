"""cellsignal submit: from a configuration to a run in KFP, and to its results where somebody waits. Wires this folder's parts."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError, StepError
from components.core.evaluation.table import accuracy_table
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import join_address
from components.core.storage.run_outcome import FailureRecord, forget_failures, read_failures
from components.core.storage.run_record import RECIPE, cluster_run_key, lineage_of
from pipelines.cluster.endpoint import Endpoint, EndpointError
from pipelines.cluster.following import Follower, Pace
from pipelines.cluster.identity import Identity, identify
from pipelines.cluster.login import Login
from pipelines.cluster.outcome import check_out, fetch, report_of_failed
from pipelines.cluster.run_display import RunDisplay
from pipelines.cluster.submission import Place, keep_first, prepare, run_in_progress, start
from pipelines.cluster.submit_checks import check_submission
from pipelines.cluster.tasks import failed_tasks, message_of
from pipelines.code_version import code_commit
from pipelines.compiling import compiled, images_of, known_lineage
from pipelines.display import task_counts
from pipelines.image_record import RECORD
from pipelines.image_registry import check_pushed

KFP_FOLDER = "kfp"
"""Of the store, where Kubeflow keeps the artifacts that it hands from task to task."""


@dataclass(frozen=True)
class Order:
    """What is submitted, and how it is followed.

    Attributes:
        endpoint: address of Kubeflow Pipelines.
        screen: address of the screen.
        truth: address of the labels of unlabelled wells; None for none.
        images: record of the images, or `tags`.
        out: folder of the results; None for runs/KEY.
        wait: whether the run is followed.
        resubmit: how often it is submitted again after it failed.
        timeout: seconds until following ends.
    """

    endpoint: str
    screen: str | None
    truth: str | None = None
    images: str = str(RECORD)
    out: Path | None = None
    wait: bool = False
    resubmit: int = 0
    timeout: float = 72 * 3600.0


def submit(config: RunConfig, order: Order, console: Console, pace: Pace | None = None) -> None:
    """Submits a run, and follows it where that is asked for.

    Raises:
        InputError: bad input, or an endpoint that does not do as asked before a run is started.
        StepError: the run failed or was cancelled.
        ContactError: contact or the deadline was lost; the run may go on.
    """
    if order.resubmit and not order.wait:
        raise InputError("--resubmit needs --wait: without it nobody sees that the run failed")
    if order.timeout <= 0:
        raise InputError(f"--timeout {order.timeout / 3600:g}: give hours above 0")
    images = images_of(order.images)
    for _, image in sorted(images.images.items()) if images else ():
        check_pushed(image.reference)
    checked = check_submission(config, order.screen, order.truth)
    source = str(order.screen).rstrip("/")
    lineage = known_lineage(config, images)
    key = cluster_run_key(config.name, lineage[RECIPE], source, checked.fingerprint)
    out = order.out or Path("runs") / key
    if order.wait:
        check_out(out, key)
    for remark in (*checked.remarks, *lineage["warnings"]):
        _warn(console, remark)
    endpoint = Endpoint(order.endpoint, Login.from_environment(), config.cluster.namespace)
    if not endpoint.multi_user:
        _warn(
            console,
            f"this Kubeflow Pipelines {endpoint.version} knows no namespaces: pods start in its own, where service account "
            f"{config.cluster.service_account} and secret {config.cluster.store_secret} must be",
        )
    text = compiled(config, images, lineage)
    identity = identify(config, key, _short(images.commit) if images else code_commit(), text)
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_text(text, encoding="utf-8")
        place = prepare(endpoint, identity, file, config.cluster.experiment)
    console.print(f"pipeline {identity.pipeline}, version {identity.version}", highlight=False, soft_wrap=True)
    begun = _begun(checked.store, key)
    submitted = {"pipeline_version": identity.version, "namespace": endpoint.namespace or "", "begun": begun}
    parameters = {
        "source": source,
        "fingerprint": checked.fingerprint,
        "truth": order.truth or "",
        # No time in it is that of another attempt, or Kubeflow's cache would know no task again.
        "lineage": json.dumps({**lineage, "submitted": submitted}, sort_keys=True),
    }
    submission = Submission(
        config, order, endpoint, place, identity, parameters, checked.store, console, pace or Pace()
    )
    run = submission.begin()
    if not order.wait:
        console.print("to follow it and fetch its results: the same command with --wait", highlight=False)
        return
    submission.wait(run, out)


def _begun(store: ObjectStorage, key: str) -> str:
    """When the run that the store records under a key was first submitted; now, where it records none.

    Kubeflow's cache goes by it: what it knows of a run that was forgotten since is in the store no more.
    """
    earlier = lineage_of(store, key)
    return str(earlier.get("submitted", {}).get("begun", "")) if earlier else datetime.now(UTC).isoformat()


@dataclass
class Submission:
    """A run that is being submitted."""

    config: RunConfig
    order: Order
    endpoint: Endpoint
    place: Place
    identity: Identity
    parameters: Mapping[str, str]
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
            _warn(self.console, "the run in progress was given another --truth, which its report will score by")
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
            _warn(
                self.console,
                f"a run of the same content was started at the same moment; end one of them, here {page} ({error})",
            )
            return mine

    def wait(self, run: Any, out: Path) -> None:
        """Follows the run, submits it again where that is asked for, and fetches what it leaves."""
        totals = task_counts(self.config)
        deadline = time.monotonic() + self.order.timeout
        left = self.order.resubmit
        secret, namespace = self.config.cluster.store_secret, self.config.cluster.namespace
        where = f"look at `kubectl get pods,workloads,events -n {namespace}` for a quota, a queue, an image or secret {secret}"
        while True:
            again = (
                f"run {run.run_id} may go on: the same command follows it again; to end it, use Terminate at "
                f"{self.endpoint.run_page(run.run_id)}"
            )
            with _stops_following(again), RunDisplay(totals, where, self.console) as display:
                follower = Follower(self.endpoint, deadline, again, display.show, display.say, self.pace)
                run = follower.follow(run.run_id)
            state = str(run.state)
            if state in ("SUCCEEDED", "SKIPPED"):
                self._fetched(out)
                return
            failures = read_failures(self.store, self.identity.key)
            said = _explain(run, totals, failures)
            bad_input = any(failure.kind == "input" for failure in failures)
            if state != "FAILED" or not left or bad_input:
                report = report_of_failed(
                    self.store, self.identity.key, self.config, self.order.truth, out, self.console
                )
                if left and bad_input:
                    said += "; not submitted again, since it would fail again"
                raise StepError(f"{said}; {report}; see {self.endpoint.run_page(run.run_id)}")
            left -= 1
            _warn(self.console, f"{said}; submitted again under the same key ({left} more tries after this one)")
            run = self.begin()

    def _fetched(self, out: Path) -> None:
        names = fetch(self.store, self.identity.key, out, self.config)
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        self.console.print(accuracy_table(metrics))
        self.console.print(f"{len(names)} files of results in {out}", highlight=False, soft_wrap=True)
        self.console.print(f"report: {(out / 'report.html').resolve()}", highlight=False, soft_wrap=True)


def _explain(run: Any, totals: Mapping[str, int], failures: list[FailureRecord]) -> str:
    """Why a run did not succeed: what the failing task said, else what the API knows."""
    if str(run.state) == "CANCELED":
        return f"run {run.run_id} was cancelled"
    if failures:
        # A task records each of its tries, also where a later one went well: the one that was tried most often has used them up.
        tries = Counter(failure.task for failure in failures)
        often = [failure for failure in failures if tries[failure.task] == max(tries.values())]
        # Bad input first: other tasks may have failed of it.
        told = next((failure for failure in failures if failure.kind == "input"), often[0])
        return f"{told.task} failed: {told.message}"
    names, message = failed_tasks(run, totals), message_of(run)
    who = " and ".join(names) if names else f"run {run.run_id}"
    return f"{who} failed" + (
        f": {message}" if message else " and left no message, as when a pod is evicted or out of memory"
    )


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


def _warn(console: Console, text: str) -> None:
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _short(commit: str) -> str:
    plain, plus, rest = commit.partition("+")
    return f"{plain[:12]}{plus}{rest}"
