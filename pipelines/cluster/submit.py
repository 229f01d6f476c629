"""cellsignal submit: from a configuration to a training in KFP that is started once. Wires this folder's parts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console

from components.core.config import RunConfig
from components.core.evaluation.table import accuracy_table
from components.core.storage.interface import ObjectStorage
from pipelines.cluster.attempts import Work
from pipelines.cluster.compile import compiled, known_lineage
from pipelines.cluster.following import Pace
from pipelines.cluster.launching import Job, launch
from pipelines.cluster.order import Order
from pipelines.cluster.outcome import report_of_failed
from pipelines.cluster.submit_checks import check_submission
from pipelines.run.display import task_counts


def submit(config: RunConfig, order: Order, console: Console, pace: Pace | None = None) -> Path | None:
    """Submits a training, and follows it where that is asked for.

    Returns:
        The folder of the results; None where nobody waited for them.

    Raises:
        InputError: bad input, found here or by a task; an endpoint that does not do as asked before a run is started.
        StepError: the run failed or was cancelled.
        ContactError: contact or the deadline was lost; the run may go on.
    """
    images = order.checked_images()
    checked = check_submission(config, order.screen, order.truth)
    lineage = known_lineage(config, images)
    job = Job(
        config=config,
        name=config.name,
        store=checked.store,
        fingerprint=checked.fingerprint,
        lineage=lineage,
        remarks=checked.remarks,
        images=images,
        compiled=lambda: compiled(config, images, lineage),
        parameters={},
        work=partial(_work, config, checked.store, order.truth, console),
    )
    return launch(job, order, console, pace)


def _work(config: RunConfig, store: ObjectStorage, truth: str | None, console: Console, key: str) -> Work:
    return Work(
        tasks=task_counts(config),
        left=lambda out: report_of_failed(store, key, config, truth, out, console),
        table=accuracy_table,
    )
