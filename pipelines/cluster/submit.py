"""cellsignal submit, and predict on a cluster: the input is checked, the pipeline is uploaded, started once and followed.

Runs in KFP have no labels, only names, so the names identify the content:
key      NAME-FINGERPRINT: the run in the object store, and the beginning of its name in KFP
version  PIPELINE-COMMIT-DIGEST: the uploaded pipeline, by the digest of the compiled file
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig, StoreConfig
from components.core.errors import ContactError, InputError
from components.core.registry.published_models import model_address
from components.core.storage.artifacts import local_file
from components.core.storage.digests import digest_text
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import cluster_store, is_folder
from components.core.storage.run_records import RECIPE, cluster_run_key, predicting_name, run_file
from components.core.storage.runs import has_results, lineage_of
from pipelines.checks import check_screen, check_start, screen_source, weights_remarks
from pipelines.cluster.checks import check_addresses, check_cluster, fingerprint, on_cluster
from pipelines.cluster.compile import compiled, images_of, known_lineage
from pipelines.cluster.endpoint import EndpointError, KfpEndpoint, Login, check_url
from pipelines.cluster.follow import ENDED, Contact, Follower, interruptible, warn
from pipelines.cluster.pod_settings import name_part, pipeline_name
from pipelines.cluster.pods import PodReader
from pipelines.cluster.results import ClusterRun, fetch, report_of_failed
from pipelines.dag import prediction_graph, training_graph
from pipelines.images.record import RECORD, check_pushed
from pipelines.options import HOURS, print_line
from pipelines.run.display import TaskDisplay, duration
from pipelines.run.folder import check_results_folder
from pipelines.run.predict_request import PredictRequest, check_prediction

KFP_FOLDER = "kfp"
"""Prefix in the run's store under which Kubeflow keeps the artifacts that it passes from task to task."""
RESUBMIT = 3
"""How many times a failed run is submitted again by default."""
PAUSES = (0.0, 120.0, 600.0)
"""Seconds before the first, the second and every further resubmission, if the last start finished no task: an outage may last."""
SETTLE = 2.0
"""Seconds after a start, before looking for a run that another process started at the same moment."""
LOOKS = 10
"""How often, SETTLE apart, a process looks for the run that another one starts in place of one that it has terminated."""


@dataclass(frozen=True)
class SubmitRequest:
    """Where a training or a prediction is submitted, on which data, and how it is followed."""

    endpoint: str
    screen: str | None
    truth: str | None = None
    images: str = str(RECORD)  # record of the images, or `tags`
    out: Path | None = None  # folder of the results; None for runs/KEY
    wait: bool = False
    resubmit: int | None = None  # how many times a failed run is submitted again; None for RESUBMIT times
    timeout: float = HOURS * 3600.0  # seconds until following ends
    # whether results of the same content in the store are fetched instead of starting a run
    reuse_results: bool = False


def submit(wanted: RunConfig | PredictRequest, request: SubmitRequest, console: Console) -> None:
    """Starts a run unless one with the same content is in progress, and follows it if that is requested.

    `wanted` is the configuration of a training, or a prediction of new plates. The experiments of a prediction may be of a training
    screen, whose labels are not read.

    Raises:
        InputError: bad input, the endpoint refuses, or a task failed because of bad input.
        StepError: the run failed or was cancelled.
        ContactError: contact was lost or the deadline passed; the run may continue.
    """
    run, remarks = _checked_run(wanted, request)
    out = request.out or Path("runs") / run.key
    if request.wait:
        check_results_folder(out, run.key)
    if request.reuse_results and not request.truth and has_results(run.store, run.key):  # a truth changes the report
        print_line(console, f"run {run.key} has finished before, so nothing is started")
        fetch(run, out, console)
        return
    for remark in (*remarks, *run.lineage["warnings"]):
        warn(console, remark)
    advice = f"whether run {run.key} has started is unknown: the same command follows it if it has"
    contact = Contact(time.monotonic() + request.timeout, console, advice)
    endpoint = _connected(run, request.endpoint, contact)
    text, _ = compiled(run.config, run.graph, run.images.references, run.lineage)
    display = TaskDisplay(run.config, run.graph.counts(), console)
    follower = Follower(endpoint, run, contact, display, PodReader(run.config.cluster.namespace))
    with interruptible(lambda: contact.advice):
        submission = contact.answered(lambda: _Submission(run, text, endpoint, console))
        started = contact.answered(submission.start)
        if not request.wait:
            print_line(console, "to follow it and fetch its results: the same command with --wait")
            print_line(console, f"its progress: cellsignal status --run {run.store.uri(run_file(run.key, ''))} --watch")
            return
        left = resubmissions = RESUBMIT if request.resubmit is None else request.resubmit
        with display:
            while failure := follower.follow(started):
                contact.advice = advice  # following changed it
                other = contact.answered(submission.successor) if failure.cancelled else None
                if other is not None:  # another process that follows it has submitted it again
                    started = other
                    print_line(console, f"{failure.message}; following run {started.run_id} of the same content")
                    continue
                if failure.final or not left:
                    break
                pause = PAUSES[min(resubmissions - left, len(PAUSES) - 1)] if failure.fruitless else 0.0
                left -= 1
                when = f" in {duration(pause)}" if pause else ""
                again = f"submitted again under the same key{when}, {left} more if it fails again"
                warn(console, f"{failure.message}; {again}")
                contact.advice = f"run {run.key} has failed: the same command submits it again"
                time.sleep(pause)
                contact.advice = advice
                started = contact.answered(submission.start)
    if failure is None:
        fetch(run, out, console)
        return
    report = report_of_failed(run, out, console)
    raise failure.error(f"{failure.message}; {report}; see {endpoint.run_page(started.run_id)}")


def _checked_run(wanted: RunConfig | PredictRequest, request: SubmitRequest) -> tuple[ClusterRun, list[str]]:
    """Checks the input of a run, and returns it with warnings; nothing is written."""
    check_url(request.endpoint)
    if request.resubmit and not request.wait:
        raise InputError("--resubmit needs --wait, which notices that the run failed")
    images = images_of(request.images)
    for reference in images.references.values():
        check_pushed(reference)
    if request.screen is None:
        raise InputError(
            "--screen is missing, and a cluster does not simulate: give its s3:// address; for a simulated one run "
            "`cellsignal simulate --config NAME --out s3://BUCKET/KEY` and give s3://BUCKET/KEY/screen"
        )
    check_addresses(request.screen, request.truth)
    source = screen_source(request.screen)
    source.check()
    parameters: dict[str, Any] = {}
    if isinstance(wanted, RunConfig):
        config = on_cluster(wanted)
        graph = training_graph(config)
        name, remarks = config.name, [*weights_remarks(config), *check_cluster(config, graph, request.wait)]
        store = _opened(config.store)
        with local_file(request.truth) as labels:
            tables = check_screen(config, source, labels)
        check_start(config)
        lineage = known_lineage(config, images)
    else:
        if is_folder(model_address(wanted.model)[0]):
            raise InputError(
                f"--model {wanted.model}: is in a folder of this machine, which pods cannot read; publish its run in a bucket, "
                "and give s3://BUCKET[/PREFIX]/models/FINGERPRINT"
            )
        chosen = cluster_store(wanted.store())
        store = _opened(chosen)
        with local_file(request.truth) as labels:
            checked = check_prediction(wanted, chosen, store, source, labels)
        config, graph, parameters = checked.config, prediction_graph(checked.folds), checked.params.parameters()
        name, remarks = predicting_name(config.name), check_cluster(config, graph, request.wait)
        tables = checked.screen
        decides = {**checked.params.model_dump(mode="json"), "model": checked.model.fingerprint}  # at whatever address
        lineage = {**known_lineage(config, images, decides), "model": dict(checked.model_info)}
    address, digest = request.screen.rstrip("/"), fingerprint(source, tables)
    key = cluster_run_key(name, lineage[RECIPE], address, digest)
    parameters = {**parameters, "source": address, "fingerprint": digest, "truth": request.truth or ""}
    return ClusterRun(config, key, store, images, graph, lineage, parameters), remarks


def _opened(chosen: StoreConfig) -> ObjectStore:
    store = ObjectStore(chosen.address)
    store.check()
    return store


def _connected(run: ClusterRun, url: str, contact: Contact) -> KfpEndpoint:
    """Connects to the endpoint."""
    login, namespace = Login.from_environment(), run.config.cluster.namespace
    return contact.answered(
        lambda: KfpEndpoint(url, login, namespace),
        lambda error: error.passing and error.status != 0,  # without any response, the address may be wrong
    )


class _Submission:
    """Pipeline, version and experiment at an endpoint, each created unless it exists, and the runs of the same content."""

    def __init__(self, run: ClusterRun, text: str, endpoint: KfpEndpoint, console: Console) -> None:
        """Uploads the compiled pipeline; InputError if the experiment is archived, so that no run can be started in it."""
        self.run, self.endpoint, self.console = run, endpoint, console
        commit = run.images.commit
        self.name = f"{run.key} {commit or 'no commit'}"
        # KFP may keep versions as Kubernetes objects, whose names have letters, digits, dots and hyphens only.
        uploaded = pipeline_name(run.config, run.graph)
        version_name = f"{uploaded}-{name_part(commit) or 'no-commit'}-{digest_text(text)[:12]}"
        client, namespace, experiment = endpoint.client, endpoint.namespace, run.config.cluster.experiment
        with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder, _without_links():
            file = Path(folder) / "pipeline.yaml"
            file.write_text(text, encoding="utf-8")
            known = endpoint.listed("pipelines", uploaded, namespace=namespace)
            pipeline = known[0] if known else client.upload_pipeline(str(file), uploaded, namespace=namespace)
            pipeline_id = pipeline.pipeline_id
            known = endpoint.listed("pipeline_versions", version_name, pipeline_id=pipeline_id)
            version = known[0] if known else client.upload_pipeline_version(str(file), version_name, pipeline_id)
            found = client.create_experiment(experiment, namespace=namespace)  # or the existing one
        if str(found.storage_state) == "ARCHIVED":
            raise InputError(
                f"cluster.experiment: {experiment} is archived at {endpoint.url}; unarchive it in the UI (Experiments, Archived), "
                "or give another one"
            )
        print_line(console, f"pipeline {uploaded}, version {version_name}")
        self.ids = {
            "experiment_id": found.experiment_id,
            "pipeline_id": pipeline_id,
            "version_id": version.pipeline_version_id,
        }
        self.parameters = {**run.parameters, "lineage": self._lineage(version_name)}

    def start(self) -> Any:
        """The run in progress with the same content, else a new one; ContactError if it is unknown whether it has started.

        If another process starts the same run at the same moment, the older one stays.
        """
        run = self.in_progress()
        if run is not None:
            earlier = (run.runtime_config.parameters or {}) if run.runtime_config else self.parameters
            if earlier.get("truth", "") != self.parameters["truth"]:
                warn(self.console, "the run in progress was given another --truth, which its report will score by")
            return self._shown(run, "is in progress with the same content, so no second one is started")
        mine = self._new_run()
        time.sleep(SETTLE)
        run = self.in_progress() or mine
        if run is None:  # a second start might make two
            raise ContactError(
                f"whether run {self.name} has started is unknown: the same command follows it if it has, else starts it"
            )
        if mine is not None and run.run_id != mine.run_id:
            self.endpoint.client.terminate_run(mine.run_id)
            return self._shown(run, "was started by another process at the same moment")
        return self._shown(run, "started")

    def _new_run(self) -> Any | None:
        """Starts a run; None if the endpoint does not answer whether it has."""
        store = self.run.config.store
        try:
            with _without_links():
                return self.endpoint.client.run_pipeline(
                    job_name=self.name,
                    params=dict(self.parameters),
                    # A namespace's default root may be another bucket, for which the pods have no credentials.
                    pipeline_root=f"{store.address}/{KFP_FOLDER}",
                    service_account=self.run.config.cluster.service_account,
                    **self.ids,
                )
        except EndpointError as error:
            if not error.passing:
                raise
            warn(self.console, f"{error}; looking whether the run has started")
            return None

    def successor(self) -> Any | None:
        """The run in progress with the same content once another process has had time to start it after it terminated one."""
        for _ in range(LOOKS):
            time.sleep(SETTLE)
            if (run := self.in_progress()) is not None:
                return run
        return None

    def in_progress(self) -> Any | None:
        """The oldest run of the same content that has not ended; None if there is none."""
        # The server can only search for a substring.
        scope = {"experiment_id": self.ids["experiment_id"], "sort_by": "created_at desc"}
        running = [
            run
            for run in self.endpoint.listed("runs", self.run.key, operation="IS_SUBSTRING", **scope)
            if run.display_name.split(" ")[0] == self.run.key and str(run.state) not in ENDED | {"CANCELING"}
        ]
        return min(running, key=lambda run: (run.created_at, run.run_id), default=None)

    def _shown(self, run: Any, state: str) -> Any:
        print_line(self.console, f"run {self.name} {state}")
        print_line(self.console, self.endpoint.run_page(run.run_id))
        return run

    def _lineage(self, version: str) -> str:
        """The parameter `lineage`. Kubeflow's cache recognises no task if it has anything of this attempt alone.

        `submitted` is the first submission that the store has a record of: a later one may have another version, whose pods request
        more memory. Without the record, what Kubeflow's cache refers to is gone, too.
        """
        earlier = lineage_of(self.run.store, self.run.key).get("submitted")
        submitted = earlier or {"pipeline_version": version, "begun": datetime.now(UTC).isoformat()}
        return json.dumps({**self.run.lineage, "submitted": submitted}, sort_keys=True)


def _without_links() -> contextlib.AbstractContextManager[Any]:
    """Keeps kfp.Client from printing links."""
    return contextlib.redirect_stdout(io.StringIO())
