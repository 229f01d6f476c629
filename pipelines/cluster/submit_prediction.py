"""cellsignal predict --endpoint: new plates are predicted by a published model on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.core.config import StoreConfig
from components.core.errors import InputError, StepError
from components.core.evaluation.table import accuracy_table
from components.core.registry.published_models import model_address
from components.core.screen.wells import Screen
from components.core.storage.exchange import local_file
from components.core.storage.interface import MissingObjectError, ObjectStorage
from components.core.storage.opening import cluster_store, is_folder, open_screen, open_store
from components.core.storage.run_records import predicting_name
from pipelines.cluster.checks import (
    check_address,
    check_bucket,
    check_cluster,
    check_keys,
    fingerprint,
    truth_is_a_copy,
)
from pipelines.cluster.compile import compiled, known_lineage
from pipelines.cluster.follow import Pace
from pipelines.cluster.results import recorded_folds
from pipelines.cluster.submit import ClusterRun, SubmitRequest, submit_run
from pipelines.dag import prediction_graph
from pipelines.run.predict_request import CheckedPrediction, PredictRequest, check_prediction


def predict_on_cluster(
    request: PredictRequest, order: SubmitRequest, console: Console, pace: Pace | None = None
) -> Path:
    """Predicts new plates on a cluster, and waits for the results; a run of the same content in progress is followed.

    Args:
        request: the prediction; its experiments may be of a training screen, whose labels are not read.
        order: where, with which images, and how it is followed; it is always waited for.
        console: where progress is printed.
        pace: intervals of following.

    Returns:
        The folder of the results: predictions.csv, qc.csv, metrics.json, report.html, config.yaml, lineage.json, embeddings.

    Raises:
        As submit_run.
    """
    out = submit_prediction(request, replace(order, wait=True), console, pace)
    assert out is not None, "it was waited for"
    return out


def submit_prediction(
    request: PredictRequest, order: SubmitRequest, console: Console, pace: Pace | None = None
) -> Path | None:
    """Checks a prediction and submits it; returns and raises as submit_run."""
    images = order.checked_images()
    store, checked = _checked(request, order)
    config, params, folds = checked.config, checked.params, checked.folds
    steps = tuple(prediction_graph(folds).counts())
    remarks = check_cluster(config, steps)
    decides = {**params.plain(), "model": checked.model.fingerprint}  # wherever it is published
    lineage = {**known_lineage(config, images, decides), "model": dict(checked.model_info)}
    run = ClusterRun(
        config=config,
        name=predicting_name(config.name),
        steps=steps,
        store=store,
        fingerprint=fingerprint(
            open_screen(str(order.screen)), Screen(checked.plates, checked.model.vocabulary), config.screen.sites
        ),
        lineage=lineage,
        remarks=remarks,
        images=images,
        pipeline=lambda: compiled(config, images, lineage, folds),
        parameters=params.parameters(),
        rescue=lambda key, _: _left(store, key, folds),
        table_of=_table,
    )
    return submit_run(run, order, console, pace)


def _checked(request: PredictRequest, order: SubmitRequest) -> tuple[ObjectStorage, CheckedPrediction]:
    """The store that new plates go to, and what is known of the prediction; nothing is written."""
    check_address("--screen", str(order.screen))
    if order.truth is not None:
        check_address("--truth", order.truth)
    chosen = _store(request)
    check_keys(
        "the model and the new plates cannot be looked at", "what the configuration's cluster.store_secret names"
    )
    store = open_store(chosen.bucket, chosen.prefix)
    store.check()
    place = open_screen(str(order.screen))
    place.check()
    with truth_is_a_copy(), local_file(order.truth) as truth:
        return store, check_prediction(request, chosen, store, place, truth, f"--screen {order.screen}")


def _store(request: PredictRequest) -> StoreConfig:
    chosen = request.store()
    if is_folder(model_address(request.model)[0]):
        raise InputError(
            f"--model {request.model}: is in a folder of this machine, which pods cannot read; publish its run in a bucket, "
            "and give s3://BUCKET[/PREFIX]/models/NAME"
        )
    chosen = cluster_store(chosen)
    check_bucket(chosen)
    return chosen


def _left(store: ObjectStorage, key: str, folds: Mapping[str, Sequence[int]]) -> str:
    """What a failed prediction left: no report, for an ensemble of fewer folds would be another model."""
    wanted = sum(map(len, folds.values()))
    try:
        done = sum(map(len, recorded_folds(store, key).values()))
    except MissingObjectError:
        return "no report: the run failed before the plates were packed"
    except (InputError, StepError) as error:
        return f"no report: {error}"
    return f"no report: {done} of {wanted} folds have predicted, and the same command resumes from them"


def _table(metrics: Mapping[str, Any]) -> Table | None:
    return accuracy_table(metrics, holdout="new plates") if "holdout" in metrics else None
