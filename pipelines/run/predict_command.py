"""cellsignal predict: new plates are predicted on this machine or on a cluster. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from components.core.command import list_items
from components.core.errors import InputError
from pipelines.options import Changes, OptionalConfig, Resubmit, Store, Timeout, Truth, Wait, timeout_seconds
from pipelines.run import Runner


def predict(
    screen: Annotated[
        str, typer.Option(help="directory of the new plates, or s3://BUCKET/PREFIX; labels are not needed")
    ],
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default on a cluster with --wait: runs/KEY")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="`champion`, the first digits of a fingerprint, or s3://BUCKET[/PREFIX]/models/NAME, "
            "file:///FOLDER/models/NAME"
        ),
    ] = "champion",
    truth: Truth = None,
    experiments: Annotated[
        list[str] | None, typer.Option(help="experiments to predict, for example HUVEC-25,RPE-12; default: all")
    ] = None,
    any_cell_type: Annotated[
        bool,
        typer.Option(
            "--any-cell-type",
            help="predict cell types that the model was not trained on, by its networks trained on all of its cell types, if any",
        ),
    ] = False,
    store: Store = None,
    runner: Annotated[
        Runner | None,
        typer.Option(
            help="run tasks as processes (default), or in containers of the images from `images build`; on this machine only"
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="predict on a cluster: address of Kubeflow Pipelines, as for submit; all data in buckets"),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="with --endpoint: file written by `images push` (default images.json), or `tags`")
    ] = None,
    wait: Wait = False,
    resubmit: Resubmit = 0,
    timeout: Timeout = None,
    config: OptionalConfig = None,
    set: Changes = None,
) -> None:
    """Predicts the wells of new plates with a published model, and checks the quality of the plates.

    Plates are packed once, in the model's store. Of --config only store, loader, compute, local, cluster, pack and embeddings
    are used. The same command with the same --out resumes; on a cluster, a run of the same content in progress is followed.
    --wait, --resubmit and --timeout go with --endpoint; logins and exit codes are those of submit.
    """
    from rich.console import Console

    from pipelines.run.predict_request import PredictRequest

    names = list_items("--experiments", experiments or [])
    request, console = PredictRequest(model, config, set or [], names, any_cell_type), Console()
    if endpoint is not None:
        _refuse({"--runner": runner, "--store": store}, "applies to this machine; leave it out, or --endpoint")
        from pipelines.cluster.submit import SubmitRequest, submit

        seconds = timeout_seconds(timeout)
        order = SubmitRequest(endpoint, screen, truth, images or "images.json", out, wait, resubmit, seconds)
        submit(request, order, console)
        return
    on_cluster = {"--images": images, "--wait": wait, "--resubmit": resubmit, "--timeout": timeout is not None}
    _refuse(on_cluster, "applies to a cluster; give --endpoint as well, or leave it out")
    if out is None:
        raise InputError("--out is missing: give the folder of the results")
    from components.core.evaluation.table import accuracy_table
    from pipelines.run.folder import read_metrics
    from pipelines.run.local import predict_here

    labels = Path(truth) if truth is not None else None
    predict_here(request, screen, out, labels, store, console, containers=runner is Runner.DOCKER)
    metrics = read_metrics(out)
    if "holdout" in metrics:
        console.print(accuracy_table(metrics, holdout="new plates"))
    console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True, highlight=False)


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Refuses the first given option, because it does not apply."""
    for option, value in given.items():
        if value:
            raise InputError(f"{option} {why}")
