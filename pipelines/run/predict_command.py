"""cellsignal predict: new plates predicted by a published model, here or on a cluster. Imports neither torch nor kfp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from components.core.errors import InputError
from pipelines.run import Runner
from pipelines.store.options import Store


def predict(
    screen: Annotated[str, typer.Option(help="folder of the new plates, or s3://BUCKET/PREFIX; no labels are needed")],
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the results; of a prediction on a cluster with --wait, default runs/KEY"),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="`champion`, the first digits of a fingerprint, or s3://BUCKET[/PREFIX]/models/NAME, "
            "file:///FOLDER/models/NAME"
        ),
    ] = "champion",
    truth: Annotated[
        str | None, typer.Option(help="labels of treatment wells (id_code,sirna), for the report's scoring alone")
    ] = None,
    experiments: Annotated[str, typer.Option(help="only these, for example HUVEC-25,RPE-12; all without")] = "",
    any_cell_type: Annotated[
        bool,
        typer.Option(
            "--any-cell-type",
            help="predict cell types that the model does not know by networks that learned all of its own, if it has such",
        ),
    ] = False,
    store: Store = None,
    runner: Annotated[
        Runner | None,
        typer.Option(help="here, tasks are processes (usual), or containers of the images that `images build` made"),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="predict on a cluster: address of Kubeflow Pipelines, as for submit; all data in buckets"),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="with --endpoint: images.json that `images push` wrote (usual), or `tags`")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="with --endpoint: follow the run, then fetch its results")
    ] = False,
    resubmit: Annotated[
        int, typer.Option(min=0, help="with --wait: how often a failed run is submitted again; finished work is kept")
    ] = 0,
    timeout: Annotated[
        float | None, typer.Option(help="with --wait: hours until following ends (72); the run goes on")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="configuration whose store, loader, compute, local, cluster, pack and embeddings are used; else the defaults"
        ),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE changes one field, for example predict.views=4")
    ] = None,
) -> None:
    """Predicts the wells of new plates with a published model, with quality control of the plates.

    Plates go to the store of the model, where they are packed once. The same --out again resumes; on a cluster the same
    content follows the run that is in progress, with the logins and exit codes of submit.
    """
    from rich.console import Console

    from pipelines.run.predict_request import PredictRequest

    names = [name.strip() for name in experiments.split(",") if name.strip()]
    request, console = PredictRequest(model, config, set or [], names, any_cell_type), Console()
    of_cluster = {"--images": images, "--wait": wait, "--resubmit": resubmit, "--timeout": timeout is not None}
    if endpoint is not None:
        _refuse({"--runner": runner, "--store": store}, "applies to this machine; leave it out, or --endpoint")
        from pipelines.cluster.submit import HOURS, SubmitRequest
        from pipelines.cluster.submit_prediction import submit_prediction

        hours = HOURS if timeout is None else timeout
        order = SubmitRequest(endpoint, screen, truth, images or "images.json", out, wait, resubmit, hours * 3600)
        submit_prediction(request, order, console)
        return
    _refuse(of_cluster, "applies to a cluster; give --endpoint as well, or leave it out")
    if out is None:
        raise InputError("--out is missing: give the folder of the results")
    from components.core.evaluation.table import accuracy_table
    from pipelines.run.local import predict_here
    from pipelines.run.results import read_metrics

    labels = Path(truth) if truth is not None else None
    predict_here(request, screen, out, labels, store, console, containers=runner is Runner.DOCKER)
    metrics = read_metrics(out)
    if "holdout" in metrics:
        console.print(accuracy_table(metrics, holdout="new plates"))
    console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True, highlight=False)


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Refuses the first option that is given though it does not apply."""
    for option, value in given.items():
        if value:
            raise InputError(f"{option} {why}")
