"""From checked input to a run in KFP that is started once, and followed where that is asked for; of a training or a prediction."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.storage.interface import ObjectStorage
from components.core.storage.run_record import RECIPE, cluster_run_key, lineage_of
from pipelines.cluster.attempts import Submission, Work, fetched, warn
from pipelines.cluster.config_checks import preemption_remarks
from pipelines.cluster.endpoint import Endpoint
from pipelines.cluster.following import Pace
from pipelines.cluster.identity import identify
from pipelines.cluster.login import Login
from pipelines.cluster.order import Order
from pipelines.cluster.outcome import check_out, has_results
from pipelines.cluster.submission import prepare
from pipelines.images.code_version import code_commit
from pipelines.images.record import ImageRecord


@dataclass(frozen=True)
class Job:
    """A run that may be started.

    Attributes:
        config: of the run.
        name: of its pipeline, and the beginning of its key.
        store: where it is recorded.
        fingerprint: of the screen's files.
        lineage: what is known of it.
        remarks: what should be looked at, a sentence each.
        images: that are pinned; None for tags.
        compiled: makes the pipeline file's content.
        parameters: of the pipeline, beside source, fingerprint, truth and lineage.
        work: what it does, by its key.
    """

    config: RunConfig
    name: str
    store: ObjectStorage
    fingerprint: str
    lineage: Mapping[str, Any]
    remarks: Sequence[str]
    images: ImageRecord | None
    compiled: Callable[[], str]
    parameters: Mapping[str, Any]
    work: Callable[[str], Work]


def launch(job: Job, order: Order, console: Console, pace: Pace | None = None) -> Path | None:
    """Starts a run unless one of the same content is in progress, and follows it where that is asked for.

    Returns:
        The folder of the results; None where nobody waited for them.

    Raises:
        InputError: an endpoint that does not do as asked, a folder of something else, or bad input that a task found.
        StepError: the run failed or was cancelled.
        ContactError: contact or the deadline was lost; the run may go on.
    """
    config, source = job.config, str(order.screen).rstrip("/")
    key = cluster_run_key(job.name, job.lineage[RECIPE], source, job.fingerprint)
    out, work = order.out or Path("runs") / key, job.work(key)
    if order.wait:
        check_out(out, key)
    if order.finished and not order.truth and has_results(job.store, key):  # with a truth the report may be another one
        console.print(
            f"run {key} has finished before, so that nothing is started for it", highlight=False, soft_wrap=True
        )
        fetched(config, job.store, key, work, out, console)
        return out
    preemption = () if order.resubmit else preemption_remarks(config, work.tasks)
    for remark in (*job.remarks, *preemption, *job.lineage["warnings"]):
        warn(console, remark)
    endpoint = Endpoint(order.endpoint, Login.from_environment(), config.cluster.namespace)
    if not endpoint.multi_user:
        warn(
            console,
            f"this Kubeflow Pipelines {endpoint.version} knows no namespaces: pods start in its own, where service account "
            f"{config.cluster.service_account} and {config.cluster.credentials} must be",
        )
    text = job.compiled()
    identity = identify(job.name, key, _short(job.images.commit) if job.images else code_commit(), text)
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_text(text, encoding="utf-8")
        place = prepare(endpoint, identity, file, config.cluster.experiment)
    console.print(f"pipeline {identity.pipeline}, version {identity.version}", highlight=False, soft_wrap=True)
    begun = _begun(job.store, key)
    submitted = {"pipeline_version": identity.version, "namespace": endpoint.namespace or "", "begun": begun}
    parameters = {
        **job.parameters,
        "source": source,
        "fingerprint": job.fingerprint,
        "truth": order.truth or "",
        # No time in it is that of another attempt, or Kubeflow's cache would know no task again.
        "lineage": json.dumps({**job.lineage, "submitted": submitted}, sort_keys=True),
    }
    submission = Submission(config, work, endpoint, place, identity, parameters, job.store, console, pace or Pace())
    run = submission.begin()
    if not order.wait:
        console.print("to follow it and fetch its results: the same command with --wait", highlight=False)
        return None
    submission.wait(run, out, order.timeout, order.resubmit)
    return out


def _begun(store: ObjectStorage, key: str) -> str:
    """When the run that the store records under a key was first submitted; now, where it records none.

    Kubeflow's cache goes by it: what it knows of a run that was forgotten since is in the store no more.
    """
    earlier = lineage_of(store, key)
    return str(earlier.get("submitted", {}).get("begun", "")) if earlier else datetime.now(UTC).isoformat()


def _short(commit: str) -> str:
    plain, plus, rest = commit.partition("+")
    return f"{plain[:12]}{plus}{rest}"
