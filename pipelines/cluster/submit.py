"""cellsignal submit: a training or a prediction is checked, uploaded, started once, followed, and its results are fetched.

Runs in KFP have no labels, only names, so the names identify the content:
key      NAME-FINGERPRINT: the run in the object store, and the beginning of its name in KFP
version  PIPELINE-COMMIT-DIGEST: the uploaded pipeline, by the digest of the compiled file
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import ContactError, InputError, StepError
from components.core.evaluation.table import accuracy_table
from components.core.storage.digests import digest_text
from components.core.storage.interface import ObjectStorage
from components.core.storage.opening import join_address
from components.core.storage.run_records import RECIPE, cluster_run_key
from components.core.storage.runs import forget_failures, lineage_of
from pipelines.cluster.checks import check_submission, on_cluster, preemption_remarks, steps_of
from pipelines.cluster.compile import compiled, images_of, known_lineage
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint, Login, quiet
from pipelines.cluster.follow import CANCELING, DONE, ENDED, Follower, Pace, decisive, warn
from pipelines.cluster.results import MetricsTable, fetch, has_results, report_of_failed
from pipelines.images.code_version import code_commit
from pipelines.images.record import RECORD, ImageRecord, check_pushed
from pipelines.options import HOURS
from pipelines.run.folder import check_results_folder

KFP_FOLDER = "kfp"
"""Prefix in the run's store under which Kubeflow keeps the artifacts that it passes from task to task."""
CONFLICT = 409


@dataclass(frozen=True)
class SubmitRequest:
    """Where a training or a prediction is submitted, with which images, and how it is followed.

    Attributes:
        endpoint: address of Kubeflow Pipelines.
        screen: address of the screen, or of new plates.
        truth: address of labels that only the report reads; None for none.
        images: record of the images, or `tags`.
        out: folder of the results; None for runs/KEY.
        wait: whether the run is followed.
        resubmit: how many times a failed run is submitted again.
        timeout: seconds until following ends.
        reuse_results: whether results of the same content in the store are fetched instead of starting a run.
    """

    endpoint: str
    screen: str | None
    truth: str | None = None
    images: str = str(RECORD)
    out: Path | None = None
    wait: bool = False
    resubmit: int = 0
    timeout: float = HOURS * 3600.0
    reuse_results: bool = False

    def checked_images(self) -> ImageRecord | None:
        """The images to pin, after their registry has confirmed them; None for tags.

        Raises:
            InputError: no such record or image, or options that contradict each other.
        """
        if self.resubmit and not self.wait:
            raise InputError("--resubmit needs --wait, which notices that the run failed")
        images = images_of(self.images)
        for _, image in sorted(images.images.items()) if images else ():
            check_pushed(image.reference)
        return images


@dataclass(frozen=True)
class ClusterRun:
    """A training or a prediction whose input has been checked.

    Attributes:
        config: the run's configuration.
        name: name of its pipeline, and the beginning of its key.
        steps: the steps that run.
        store: object store of the run.
        fingerprint: digest of the screen's files.
        lineage: what is known of the run.
        remarks: warnings, a sentence each.
        images: images to pin; None for tags.
        pipeline: compiles the pipeline.
        parameters: of the pipeline, besides source, fingerprint, truth and lineage.
        rescue: fetches what a failed run left, given its key and the folder of the results; returns a sentence about it.
        table_of: makes the table of a successful run's metrics.
    """

    config: RunConfig
    name: str
    steps: Sequence[str]
    store: ObjectStorage
    fingerprint: str
    lineage: Mapping[str, Any]
    remarks: Sequence[str]
    images: ImageRecord | None
    pipeline: Callable[[], str]
    parameters: Mapping[str, Any]
    rescue: Callable[[str, Path], str]
    table_of: MetricsTable = accuracy_table


def submit_training(
    config: RunConfig, request: SubmitRequest, console: Console, pace: Pace | None = None
) -> Path | None:
    """Checks a training and submits it; returns and raises as submit_run."""
    config = on_cluster(config)
    images = request.checked_images()
    checked = check_submission(config, request.screen, request.truth)
    lineage = known_lineage(config, images)
    run = ClusterRun(
        config=config,
        name=config.name,
        steps=steps_of(config),
        store=checked.store,
        fingerprint=checked.fingerprint,
        lineage=lineage,
        remarks=checked.remarks,
        images=images,
        pipeline=lambda: compiled(config, images, lineage),
        parameters={},
        rescue=lambda key, out: report_of_failed(checked.store, key, config, request.truth, out, console),
    )
    return submit_run(run, request, console, pace)


def submit_run(run: ClusterRun, request: SubmitRequest, console: Console, pace: Pace | None = None) -> Path | None:
    """Starts a run unless one with the same content is in progress, and follows it if that is requested.

    Returns:
        The folder of the results; None if the run is not waited for.

    Raises:
        InputError: the endpoint refuses, the folder holds something else, or a task failed of bad input.
        StepError: the run failed or was cancelled.
        ContactError: contact or the deadline was lost; the run may continue.
    """
    config, source = run.config, str(request.screen).rstrip("/")
    key = cluster_run_key(run.name, run.lineage[RECIPE], source, run.fingerprint)
    out = request.out or Path("runs") / key
    if request.wait:
        check_results_folder(out, key)
    if request.reuse_results and not request.truth and has_results(run.store, key):  # a truth changes the report
        _print(console, f"run {key} has finished before, so nothing is started")
        fetch(run.store, key, config, out, run.table_of, console)
        return out
    preemption = () if request.resubmit else preemption_remarks(config, run.steps)
    for remark in (*run.remarks, *preemption, *run.lineage["warnings"]):
        warn(console, remark)
    endpoint = KfpEndpoint(request.endpoint, Login.from_environment(), config.cluster.namespace)
    if not endpoint.multi_user:
        warn(
            console,
            f"this Kubeflow Pipelines {endpoint.version} has no namespaces: pods start in its own, where service account "
            f"{config.cluster.service_account} and {config.cluster.credentials} must be",
        )
    pace = pace or Pace()
    submission = _Submission(run, endpoint, key, console, pace.settle)
    submission.upload()
    submission.parameters = {
        **run.parameters,
        "source": source,
        "fingerprint": run.fingerprint,
        "truth": request.truth or "",
        "lineage": submission.lineage(),
    }
    deadline = time.monotonic() + request.timeout
    started, resubmissions = submission.start(), request.resubmit
    if not request.wait:
        _print(console, "to follow it and fetch its results: the same command with --wait")
        return None
    while True:
        follower = Follower(endpoint, run.store, key, deadline, console, pace)
        ended = follower.follow(started)
        if str(ended.state) in DONE:
            fetch(run.store, key, config, out, run.table_of, console)
            return out
        cancelled = str(ended.state) == "CANCELED" and not follower.bad_input
        message = _explanation(ended, follower, cancelled)
        if not resubmissions or follower.bad_input or cancelled:
            break
        resubmissions -= 1
        warn(console, f"{message}; submitted again under the same key ({resubmissions} more if it fails again)")
        started = submission.start()
    if follower.bad_input:
        message += "; not submitted again, because it would fail again"
    message += f"; {run.rescue(key, out)}; see {endpoint.run_page(ended.run_id)}"
    raise InputError(message) if follower.bad_input else StepError(message)


class _Submission:
    """Pipeline, version, experiment and run at an endpoint, each created only if it is not there."""

    def __init__(self, run: ClusterRun, endpoint: KfpEndpoint, key: str, console: Console, settle: float) -> None:
        """Compiles the pipeline."""
        self.run, self.endpoint, self.key, self.console, self.settle = run, endpoint, key, console, settle
        self.parameters: dict[str, Any] = {}
        self.text = run.pipeline()
        commit = _short(run.images.commit) if run.images else code_commit()
        self.name = f"{key} {commit or 'no commit'}"
        self.pipeline_name = f"cellsignal-{_label(run.name)}"
        # KFP may keep versions as Kubernetes objects, whose names have letters, digits, dots and hyphens only.
        label = _label(commit.replace("+", "-")) or "no-commit"
        self.version_name = f"{self.pipeline_name}-{label}-{digest_text(self.text)[:12]}"

    def lineage(self) -> str:
        """The parameter `lineage`, without a time of this attempt: Kubeflow's cache would recognise no task."""
        earlier = lineage_of(self.run.store, self.key)
        # The first submission that the store has a record of. Without the record, what Kubeflow's cache refers to is gone too.
        begun = str(earlier.get("submitted", {}).get("begun", "")) if earlier else datetime.now(UTC).isoformat()
        namespace = self.endpoint.namespace or ""
        submitted = {"pipeline_version": self.version_name, "namespace": namespace, "begun": begun}
        return json.dumps({**self.run.lineage, "submitted": submitted}, sort_keys=True)

    def upload(self) -> None:
        """Creates pipeline, version and experiment.

        Raises:
            EndpointError: the endpoint refuses or fails.
            InputError: the experiment is archived, so that no run can be started in it.
        """
        endpoint, client, experiment = self.endpoint, self.endpoint.client, self.run.config.cluster.experiment
        own = {"namespace": endpoint.namespace}
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder, quiet():
            file = Path(folder) / "pipeline.yaml"
            file.write_text(self.text, encoding="utf-8")
            pipeline = _found_or_created(
                lambda: endpoint.named(client.list_pipelines, "pipelines", self.pipeline_name, **own),
                lambda: client.upload_pipeline(str(file), self.pipeline_name, **own),
            )
            self.pipeline_id = pipeline.pipeline_id
            listed = {"pipeline_id": self.pipeline_id}
            version = _found_or_created(
                lambda: endpoint.named(client.list_pipeline_versions, "pipeline_versions", self.version_name, **listed),
                lambda: client.upload_pipeline_version(str(file), self.version_name, **listed),
            )
            self.version_id = version.pipeline_version_id
            found = _found_or_created(
                lambda: endpoint.named(client.list_experiments, "experiments", experiment, **own),
                lambda: client.create_experiment(experiment, **own),
            )
        if str(found.storage_state) == "ARCHIVED":
            raise InputError(
                f"cluster.experiment: {experiment} is archived at {endpoint.url}; unarchive it in the UI (Experiments, Archived), "
                "or name another"
            )
        self.experiment_id = found.experiment_id
        _print(self.console, f"pipeline {self.pipeline_name}, version {self.version_name}")

    def start(self) -> Any:
        """The run in progress with the same content, else a new one.

        Raises:
            EndpointError: the endpoint refuses.
            ContactError: whether the run has started is unknown.
        """
        run = self._in_progress()
        if run is None:
            forget_failures(self.run.store, self.key)
            mine = self._create()
            run = self._first(mine)
            state = "started" if run.run_id == mine.run_id else "was started by another process at the same moment"
        else:
            state = "is in progress with the same content, so no second one is started"
            earlier = (run.runtime_config.parameters or {}) if run.runtime_config else self.parameters
            if earlier.get("truth", "") != self.parameters["truth"]:
                warn(self.console, "the run in progress was given another --truth, which its report will score by")
        _print(self.console, f"run {self.name} {state}")
        _print(self.console, self.endpoint.run_page(run.run_id))
        return run

    def _create(self) -> Any:
        config = self.run.config
        try:
            with quiet():
                return self.endpoint.client.run_pipeline(
                    experiment_id=self.experiment_id,
                    job_name=self.name,
                    params=dict(self.parameters),
                    pipeline_id=self.pipeline_id,
                    version_id=self.version_id,
                    # A namespace's default root may be another bucket, for which the pods have no credentials.
                    pipeline_root=f"{join_address(config.store.bucket, config.store.prefix)}/{KFP_FOLDER}",
                    service_account=config.cluster.service_account,
                )
        except EndpointError as error:
            if not error.passing:
                raise
            # The run may have started although the response was lost: look before a second one is started.
            try:
                found = self._in_progress()
            except EndpointError:
                raise ContactError(
                    f"{error}; whether run {self.name} has started is unknown: the same command follows it if it has"
                ) from None
            if found is None:
                raise
            return found

    def _first(self, mine: Any) -> Any:
        """The run that stays if two processes, neither of which saw the other's run, have each started one."""
        time.sleep(self.settle)
        first = mine
        with contextlib.suppress(
            EndpointError
        ):  # two runs of the same content share their steps' outputs, and only cost more
            first = self._in_progress() or mine
            if first.run_id != mine.run_id:
                self.endpoint.client.terminate_run(mine.run_id)
        return first

    def _in_progress(self) -> Any | None:
        """The oldest run of the same content that has not ended; None if there is none."""
        # The server can only search for a substring.
        found = self.endpoint.matching(
            self.endpoint.client.list_runs, "runs", "IS_SUBSTRING", self.key, experiment_id=self.experiment_id
        )
        running = [
            run
            for run in found
            if (run.display_name or "").split(" ")[0] == self.key and str(run.state) not in ENDED | {CANCELING}
        ]
        return min(running, key=lambda run: (str(run.created_at), run.run_id), default=None)


def _explanation(run: Any, follower: Follower, cancelled: bool) -> str:
    """Why a run ended without results: the message of the failed task, else that of the API."""
    if cancelled:
        return f"run {run.run_id} was cancelled"
    if follower.failures:
        failure = decisive(follower.failures)
        return f"{failure.task} failed: {failure.message}"
    error = " ".join(str(run.error.message).split()) if run.error and run.error.message else ""
    return f"run {run.run_id} failed: {error or 'no task left a message, as when a pod is evicted or out of memory'}"


def _found_or_created(find: Callable[[], Any], create: Callable[[], Any]) -> Any:
    """What is found, else what is created, here or by another process at the same time."""
    found = find()
    if found is not None:
        return found
    try:
        return create()
    except EndpointError as error:
        found = find() if error.status == CONFLICT or error.passing else None
        if found is None:
            raise
        return found


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _short(commit: str) -> str:
    plain, plus, rest = commit.partition("+")
    return f"{plain[:12]}{plus}{rest}"


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
