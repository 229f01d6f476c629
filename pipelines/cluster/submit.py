"""cellsignal submit: from a configuration to a run in KFP that is started once. Wires this folder's parts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.storage.interface import ObjectStorage
from components.core.storage.run_record import RECIPE, cluster_run_key, lineage_of
from pipelines.cluster.attempts import Submission, warn
from pipelines.cluster.endpoint import Endpoint
from pipelines.cluster.following import Pace
from pipelines.cluster.identity import identify
from pipelines.cluster.login import Login
from pipelines.cluster.outcome import check_out
from pipelines.cluster.submission import prepare
from pipelines.cluster.submit_checks import check_submission
from pipelines.cluster_checks import preemption_remarks
from pipelines.code_version import code_commit
from pipelines.compiling import compiled, images_of, known_lineage
from pipelines.image_record import RECORD
from pipelines.image_registry import check_pushed


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
        InputError: bad input, found here or by a task; an endpoint that does not do as asked before a run is started.
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
    preemption = () if order.resubmit else preemption_remarks(config)
    for remark in (*checked.remarks, *preemption, *lineage["warnings"]):
        warn(console, remark)
    endpoint = Endpoint(order.endpoint, Login.from_environment(), config.cluster.namespace)
    if not endpoint.multi_user:
        warn(
            console,
            f"this Kubeflow Pipelines {endpoint.version} knows no namespaces: pods start in its own, where service account "
            f"{config.cluster.service_account} and {config.cluster.credentials} must be",
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
        config, order.truth, endpoint, place, identity, parameters, checked.store, console, pace or Pace()
    )
    run = submission.begin()
    if not order.wait:
        console.print("to follow it and fetch its results: the same command with --wait", highlight=False)
        return
    submission.wait(run, out, order.timeout, order.resubmit)


def _begun(store: ObjectStorage, key: str) -> str:
    """When the run that the store records under a key was first submitted; now, where it records none.

    Kubeflow's cache goes by it: what it knows of a run that was forgotten since is in the store no more.
    """
    earlier = lineage_of(store, key)
    return str(earlier.get("submitted", {}).get("begun", "")) if earlier else datetime.now(UTC).isoformat()


def _short(commit: str) -> str:
    plain, plus, rest = commit.partition("+")
    return f"{plain[:12]}{plus}{rest}"
