"""The one entry point: cellsignal. Imports neither torch nor kfp; commands load what they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from components.core.command import cancel_on_signals, run_app
from components.core.errors import InputError
from pipelines.images.command import images_app
from pipelines.models.command import models_app
from pipelines.retrain.command import retrain
from pipelines.run import Runner
from pipelines.run.predict_command import predict
from pipelines.store.command import store_app
from pipelines.store.options import Store, with_store

app = typer.Typer(
    name="cellsignal",
    help="Names the siRNA behind each well of a six-channel fluorescence screen, across experimental batches.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts have brackets of their own
)

app.add_typer(store_app, name="store")
app.add_typer(models_app, name="models")
app.add_typer(images_app, name="images")

Config = Annotated[str, typer.Option(help="a shipped configuration's name (demo, growth, rxrx1) or a YAML file")]
Screen = Annotated[
    str | None, typer.Option(help="folder of a screen, or s3://BUCKET/PREFIX; without one, one is simulated")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE changes one field, for example pretrain.epochs=4")
]


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    """Names the siRNA behind each well of a six-channel fluorescence screen, across experimental batches."""
    if version:
        from components.image import VERSION

        typer.echo(f"cellsignal {VERSION}")
        raise typer.Exit


@app.command()
def simulate(
    config: Config,
    out: Annotated[Path, typer.Option(help="folder to write: screen/ and, outside of it, truth.csv")],
    set: Changes = None,
) -> None:
    """Writes a simulated screen in the Kaggle layout."""
    arguments = ["--config", config, "--out", str(out)]
    for change in set or []:
        arguments += ["--set", change]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "components.simulate", *arguments], check=False).returncode)


@app.command()
def run(
    config: Config,
    screen: Screen = None,
    truth: Annotated[
        Path | None, typer.Option(help="labels of the unlabelled wells (id_code,sirna), for the report's scoring alone")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; default runs/NAME")] = None,
    store: Store = None,
    runner: Annotated[
        Runner, typer.Option(help="tasks are processes, or containers of the images that `images build` made")
    ] = Runner.SUBPROCESS,
    set: Changes = None,
) -> None:
    """Runs the training DAG on this machine, from a screen to named perturbations and a report.

    The same --out again resumes. With a store in S3 the usual AWS variables say where it is, and give the credentials.
    """
    from rich.console import Console

    from components.core.config import RunConfig
    from components.core.evaluation.table import accuracy_table
    from pipelines.run.known_run import with_address
    from pipelines.run.local import run_here
    from pipelines.run.results import read_metrics

    settings = with_address(with_store(RunConfig.load(config, set or []), store))
    folder = out or Path("runs") / settings.name
    console = Console()
    run_here(settings, folder, screen, truth, console, containers=runner is Runner.DOCKER)
    console.print(accuracy_table(read_metrics(folder)))
    console.print(f"start another run from its weights: --set init_from={folder}", soft_wrap=True, highlight=False)
    console.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)


app.command()(predict)
app.command()(retrain)


@app.command()
def finish(
    run: Annotated[
        str, typer.Option(help="a run's key, s3://BUCKET[/PREFIX]/runs/KEY, file:///FOLDER/runs/KEY, or its folder")
    ],
    quorum: Annotated[int, typer.Option(help="folds that every cell type must have")],
    truth: Annotated[
        Path | None, typer.Option(help="labels of the unlabelled wells (id_code,sirna), for the report's scoring alone")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; default runs/KEY")] = None,
    store: Store = None,
) -> None:
    """Ends a run whose other folds failed: ensemble to report from its finished folds, marked as partial."""
    from pipelines.run.known_run import run_finish

    raise typer.Exit(run_finish(run, quorum, out, truth, store))


@app.command()
def growth(
    config: Config = "growth",
    out: Annotated[Path, typer.Option(help="folder of growth.json and growth.png")] = Path("runs/growth"),
    seeds: Annotated[str, typer.Option(help="each changes the simulated screen and the training")] = "1,2,3",
    store: Store = None,
    set: Changes = None,
) -> None:
    """Shows where accuracy comes from: trains every rung of the growth chart on simulated screens.

    The same --out again goes on with what is missing.
    """
    from pipelines.studies.commands import run_growth

    raise typer.Exit(run_growth(config, set or [], seeds, out, store))


@app.command()
def protocols(
    config: Config,
    screen: Screen = None,
    protocol: Annotated[
        str, typer.Option(help="batch holds out whole experiments, random holds out wells; or both")
    ] = "both",
    repeats: Annotated[int, typer.Option(help="how often each protocol deals what it holds out")] = 3,
    backbones: Annotated[int, typer.Option(help="how many of the configured networks predict together")] = 1,
    out: Annotated[Path | None, typer.Option(help="folder of protocols.json; default runs/NAME-protocols")] = None,
    store: Store = None,
    set: Changes = None,
) -> None:
    """Measures networks by the challenge organisers' two protocols: whole experiments held out, or random wells.

    Supervised training alone, without plate design, nothing selected on scored wells. The same --out again goes on.
    """
    from components.core.config import RunConfig
    from pipelines.studies.commands import run_protocols

    changes = set or []
    folder = out or Path("runs") / f"{RunConfig.load(config, changes).name}-protocols"
    raise typer.Exit(run_protocols(config, changes, screen, protocol, repeats, backbones, folder, store))


@app.command()
def plan(
    config: Config,
    screen: Annotated[
        str | None, typer.Option(help="folder of a screen, for its tables; without one, the sizes under simulate")
    ] = None,
    gpus: Annotated[
        list[str] | None, typer.Option(help="numbers of GPUs, for example 1,4,8; without any, usual ones")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="kind of GPU: l4, a10, l40s, a100-80gb, h100, h200, or your own")
    ] = None,
    throughput: Annotated[
        Path | None, typer.Option(help="YAML with measured rates, pods and prices in place of the shipped examples")
    ] = None,
    measured: Annotated[Path | None, typer.Option(help="folder of a finished run, whose rates are taken")] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON document instead of tables")] = False,
    set: Changes = None,
) -> None:
    """Tells what a run will take before it starts: pods, GPU-hours, bytes, requests, hours on N GPUs, money.

    Starts nothing. Rates are assumed from data sheets unless measured ones are given, and every line says which.
    """
    from rich.console import Console

    from components.core.config import RunConfig
    from pipelines.plan.output import run_plan

    run_plan(RunConfig.load(config, set or []), screen, gpus or [], gpu, throughput, measured, json, Console())


@app.command(name="compile")
def compile_(
    config: Config,
    out: Annotated[Path, typer.Option(help="file to write, .yaml; in a folder that is there")] = Path("pipeline.yaml"),
    images: Annotated[
        str,
        typer.Option(
            help="the record that `images push` wrote, whose digests are pinned; or `tags`: images by tag that the nodes have "
            "already (kind load), of which Kubeflow then caches nothing"
        ),
    ] = "images.json",
    set: Changes = None,
) -> None:
    """Compiles the training DAG for Kubeflow Pipelines, with images by digest, and resources and secrets of every step.

    Its parameters are source (s3:// address of the screen), fingerprint (of the screen's files: another one when they change)
    and truth (s3:// address, or empty). The same configuration, code and images compile to the same bytes.
    """
    from rich.console import Console

    from components.core.config import RunConfig
    from pipelines.cluster.compile import run_compile

    run_compile(RunConfig.load(config, set or []), out, images, Console())


@app.command()
def submit(
    config: Config,
    endpoint: Annotated[
        str,
        typer.Option(help="address of Kubeflow Pipelines, http(s)://HOST[/pipeline]", envvar="KF_PIPELINES_ENDPOINT"),
    ],
    screen: Annotated[str | None, typer.Option(help="s3://BUCKET/PREFIX of the screen")] = None,
    truth: Annotated[
        str | None, typer.Option(help="s3:// address of labels (id_code,sirna), for the report's scoring alone")
    ] = None,
    images: Annotated[
        str,
        typer.Option(help="the record that `images push` wrote, whose digests are pinned; or `tags`, as for compile"),
    ] = "images.json",
    wait: Annotated[bool, typer.Option("--wait", help="follow the run, then fetch its results")] = False,
    resubmit: Annotated[
        int, typer.Option(min=0, help="with --wait: how often a failed run is submitted again; finished work is kept")
    ] = 0,
    timeout: Annotated[float, typer.Option(help="with --wait: hours until following ends; the run goes on")] = 72.0,
    out: Annotated[Path | None, typer.Option(help="with --wait: folder of the results; default runs/KEY")] = None,
    set: Changes = None,
) -> None:
    """Submits the training DAG to Kubeflow Pipelines. The same content again follows the run that is in progress.

    Login comes from the environment: KFP_TOKEN, KFP_TOKEN_FILE or KFP_COOKIE; in a pod the token of its service account.
    KFP_CA_CERT names a file of certificates. The screen is listed with the credentials in the AWS variables.

    Exits with 0 when the run is done, 2 on bad input, 3 when it failed or was cancelled, 5 when contact or the deadline was lost.
    """
    from rich.console import Console

    from components.core.config import RunConfig
    from pipelines.cluster.submit import SubmitRequest, submit_training

    request = SubmitRequest(endpoint, screen, truth, images, out, wait, resubmit, timeout * 3600)
    submit_training(RunConfig.load(config, set or []), request, Console())


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Option(help="a configuration by name or file, for its object store and namespace")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="address of Kubeflow Pipelines to check, too", envvar="KF_PIPELINES_ENDPOINT")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="record of the built images; default images.json, if it exists")
    ] = None,
    store: Store = None,
    json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
    set: Changes = None,
) -> None:
    """Checks what a run needs, here or inside an image: one line each, ok or what to do.

    Object store, images, Kubeflow Pipelines, GPU, versions, room. Exits with 2 if something that is needed fails.
    """
    from rich.console import Console

    from components.core.config import RunConfig
    from pipelines.doctor.run import run_doctor

    if set and config is None:
        raise InputError("--set: changes a configuration; give --config as well")
    settings = RunConfig.load(config, set or []) if config else RunConfig()
    raise typer.Exit(run_doctor(with_store(settings, store), endpoint, images, Console(), as_json=json))


@app.command()
def jobs(
    config: Config,
    out: Annotated[Path, typer.Option(help="folder to write: a YAML file a step")] = Path("jobs"),
    images: Annotated[
        str, typer.Option(help="the record that `images push` wrote, whose digests are pinned; or `tags`")
    ] = "images.json",
    set: Changes = None,
) -> None:
    """Writes a plain Kubernetes Job for each step, to debug a step on a cluster without Kubeflow.

    They read and write below by-hand/NAME of the configuration's bucket.
    """
    from components.core.config import RunConfig
    from pipelines.cluster.checks import check_cluster, on_cluster
    from pipelines.cluster.compile import images_of
    from pipelines.cluster.jobs import step_jobs, write_jobs

    settings = on_cluster(RunConfig.load(config, set or []))
    check_cluster(settings)
    manifests = step_jobs(settings, config, set or [], images_of(images))
    write_jobs(manifests, out)
    typer.echo(f"{out}: {', '.join(manifests)}")


def main() -> None:
    """Runs the command line."""
    cancel_on_signals("run the same command again to resume from the finished steps")
    run_app(app)


if __name__ == "__main__":
    main()
