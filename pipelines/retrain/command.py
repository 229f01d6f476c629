"""cellsignal retrain: trains a challenger if something changed, and promotes it unless it is worse than the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.core.command import PathOption
from components.core.errors import InputError
from pipelines.models.command import NOT_PROMOTED
from pipelines.options import (
    Changes,
    ClusterImages,
    Config,
    Json,
    Resubmit,
    Screen,
    Store,
    Timeout,
    Truth,
    console_of_terminal,
    print_json,
    refuse_elsewhere,
    timeout_seconds,
    with_store,
)
from pipelines.run import Runner


def retrain(
    config: Config,
    screen: Screen,
    endpoint: Annotated[
        str | None,
        typer.Option(help="train on a cluster: address of Kubeflow Pipelines, as for submit; default: on this machine"),
    ] = None,
    runner: Annotated[
        Runner | None, typer.Option(help="on this machine: run tasks as processes (default), or in containers")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only report what changed and what would be done")] = False,
    json: Json = False,
    allow_no_holdout: Annotated[
        bool,
        typer.Option(
            "--allow-no-holdout", help="promote without a comparison if no held-out experiment can be compared on"
        ),
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="decide again although nothing has changed")] = False,
    truth: Truth = None,
    summary: Annotated[
        Path | None, PathOption(help="Markdown file to append the decision to, for example $GITHUB_STEP_SUMMARY")
    ] = None,
    images: ClusterImages = None,
    resubmit: Resubmit = None,
    timeout: Timeout = None,
    out: Annotated[Path, PathOption(help="folder of the results, with one folder per fingerprint")] = Path(
        "runs/retrain"
    ),
    store: Store = None,
    set: Changes = None,
) -> None:
    """Trains a challenger if data, code or configuration changed, and promotes it unless it is worse than the champion.

    Both predict the held-out experiments, which neither saw; `promotion` in the configuration sets how much worse is too much.
    If nothing has changed, nothing is started. If the same retraining is in progress on a cluster, or on this machine with the same
    --out, it is followed. --resubmit and --timeout go with --endpoint; the timeout covers all runs together.

    Exits with 0 if the challenger was promoted or nothing has changed, 2 on bad input, 3 if a step failed, 4 if it was not
    promoted, 5 if contact was lost or the deadline passed: the run on the cluster may go on, and the same command follows it.
    """
    from components.core.config import RunConfig
    from pipelines.cluster.checks import on_cluster
    from pipelines.retrain.challenge import RetrainRequest
    from pipelines.retrain.retrain import plan
    from pipelines.retrain.retrain import retrain as retrain_model
    from pipelines.run.folder import with_address

    on_cluster_only = {"--images": images, "--resubmit": resubmit is not None, "--timeout": timeout is not None}
    refuse_elsewhere(endpoint, {"--runner": runner, "--store": store}, on_cluster_only)
    if json and not dry_run:
        raise InputError("--json goes with --dry-run; comparison.json has the decision of a retraining")
    settings = RunConfig.load(config, set or [])
    settings = on_cluster(settings) if endpoint else with_address(with_store(settings, store))
    request = RetrainRequest(
        endpoint or "", screen, truth, images or "images.json", out, resubmit=resubmit, timeout=timeout_seconds(timeout),
        containers=runner is Runner.DOCKER, summary=summary, allow_no_holdout=allow_no_holdout, again=again,
    )  # fmt: skip
    console = console_of_terminal(json)
    if dry_run:
        found = plan(settings, request, console)
        if json:
            print_json(**found)
    elif retrain_model(settings, request, console) == "not promoted":
        raise typer.Exit(NOT_PROMOTED)
