"""The one entry point: cellsignal. Imports neither torch nor kfp; commands load what they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from components.core.command import (
    AddressOption,
    NameOption,
    PathOption,
    cancel_on_signals,
    list_items,
    path_or_address,
    run_app,
)
from components.core.errors import InputError
from pipelines.images.command import images_app
from pipelines.models.command import models_app
from pipelines.options import (
    BucketScreen,
    Changes,
    ClusterImages,
    Config,
    Endpoint,
    Images,
    Json,
    OptionalConfig,
    Resubmit,
    SimulatedScreen,
    Store,
    Timeout,
    Truth,
    TruthAddress,
    TruthFile,
    Wait,
    console_of_terminal,
    refuse_elsewhere,
    timeout_seconds,
    with_store,
)
from pipelines.retrain.command import retrain
from pipelines.run import RESUME, Runner
from pipelines.status import runs, status
from pipelines.store.command import store_app
from pipelines.studies import ProtocolChoice

app = typer.Typer(
    name="cellsignal",
    help="Predicts the perturbation of every well of a fluorescence screen, across experimental batches.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts contain brackets
)

app.command()(status)
app.command()(runs)
app.add_typer(store_app, name="store")
app.add_typer(models_app, name="models")
app.add_typer(images_app, name="images")


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    """Predicts the perturbation of every well of a fluorescence screen, across experimental batches."""
    if version:
        from components.image import VERSION

        typer.echo(f"cellsignal {VERSION}")
        raise typer.Exit


@app.command()
def simulate(
    config: Config,
    out: Annotated[
        str,
        AddressOption(help="folder for the screen (screen/) and its labels (truth.csv): a path, or s3://BUCKET/KEY"),
    ],
    set: Changes = None,
) -> None:
    """Writes a simulated screen and its truth."""
    arguments = ["--config", config, "--out", out]
    for change in set or []:
        arguments += ["--set", change]
    raise typer.Exit(subprocess.run([sys.executable, "-m", "components.simulate", *arguments], check=False).returncode)


@app.command()
def run(
    config: Config,
    screen: SimulatedScreen = None,
    truth: TruthFile = None,
    out: Annotated[Path | None, PathOption(help="folder of the results; default: runs/NAME")] = None,
    store: Store = None,
    runner: Annotated[
        Runner, typer.Option(help="run tasks as processes, or in containers of the images from `images build`")
    ] = Runner.SUBPROCESS,
    set: Changes = None,
) -> None:
    """Runs the training DAG on this machine, from a screen to predictions and a report.

    The same command with the same --out resumes. A store in S3 takes endpoint and credentials from the usual AWS variables.
    """
    from components.core.config import RunConfig
    from components.core.evaluation.table import accuracy_table
    from pipelines.checks import truth_file
    from pipelines.run.folder import read_metrics, with_address
    from pipelines.run.local import run_here

    settings = with_address(with_store(RunConfig.load(config, set or []), store))
    folder = out or Path("runs") / settings.name
    console = console_of_terminal()
    run_here(settings, folder, screen, truth_file(truth), console, containers=runner is Runner.DOCKER)
    console.print(accuracy_table(read_metrics(folder)))
    start = f"to start another run from its weights, give it --set init_from={folder}"
    console.print(start, soft_wrap=True, highlight=False)
    console.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)


@app.command()
def predict(
    screen: Annotated[
        str, AddressOption(help="directory of the new plates, or s3://BUCKET/PREFIX; labels are not needed")
    ],
    out: Annotated[
        Path | None, PathOption(help="folder of the results; default on a cluster with --wait: runs/KEY")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="`champion` or the first digits of a fingerprint, alone (in the store of new plates) or after the address of a "
            "store: s3://BUCKET[/PREFIX]/models/champion, file:///FOLDER/models/FINGERPRINT"
        ),
    ] = "champion",
    truth: Truth = None,
    experiments: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="experiments to predict, for example HUVEC-25,RPE-12; default: all"),
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
    images: ClusterImages = None,
    wait: Wait = False,
    resubmit: Resubmit = None,
    timeout: Timeout = None,
    config: OptionalConfig = None,
    set: Changes = None,
) -> None:
    """Predicts the wells of new plates with a published model, and checks the quality of the plates.

    Plates are packed once, in the store (the model's own, unless another is chosen). Of --config only store, loader, compute,
    local, cluster, pack and embeddings are used. The same command with the same --out resumes; on a cluster, a run of the same
    content in progress is followed.
    --wait, --resubmit and --timeout go with --endpoint; logins and exit codes are those of submit.
    """
    from pipelines.run.predict_request import PredictRequest

    names = list_items("--experiments", experiments or [])
    request, console = PredictRequest(model, config, set or [], names, any_cell_type), console_of_terminal()
    on_cluster = {
        "--images": images,
        "--wait": wait,
        "--resubmit": resubmit is not None,
        "--timeout": timeout is not None,
    }
    refuse_elsewhere(endpoint, {"--runner": runner, "--store": store}, on_cluster)
    if endpoint is not None:
        from pipelines.cluster.submit import SubmitRequest
        from pipelines.cluster.submit import submit as submit_run

        seconds = timeout_seconds(timeout)
        order = SubmitRequest(endpoint, screen, truth, images or "images.json", out, wait, resubmit, seconds)
        submit_run(request, order, console)
        return
    if out is None:
        raise InputError("--out is missing: give the folder of the results")
    from components.core.evaluation.table import accuracy_table
    from pipelines.checks import truth_file
    from pipelines.run.folder import read_metrics
    from pipelines.run.local import predict_here

    predict_here(request, screen, out, truth_file(truth), store, console, containers=runner is Runner.DOCKER)
    metrics = read_metrics(out)
    if "holdout" in metrics:
        console.print(accuracy_table(metrics, holdout="new plates"))
    console.print(f"report: {(out / 'report.html').resolve()}", soft_wrap=True, highlight=False)


app.command()(retrain)


@app.command()
def finish(
    run: Annotated[
        str, typer.Option(help="a run's key, s3://BUCKET[/PREFIX]/runs/KEY, file:///FOLDER/runs/KEY, or its folder")
    ],
    quorum: Annotated[int, typer.Option(metavar="N", help="number of finished folds that every cell type needs")],
    truth: TruthFile = None,
    out: Annotated[Path | None, PathOption(help="folder of the results; default: runs/KEY")] = None,
    store: Store = None,
) -> None:
    """Completes a run from its finished folds if the others failed; its results are marked as partial."""
    from pipelines.checks import truth_file
    from pipelines.run.finish import run_finish

    run_finish(run, quorum, out, truth_file(truth), store, console_of_terminal())


@app.command()
def growth(
    # Not CELLSIGNAL_CONFIG: the chart has a screen and a schedule of its own.
    config: Annotated[str, NameOption(help="shipped configuration or YAML file")] = "growth",
    out: Annotated[Path, PathOption(help="folder of growth.json and growth.png")] = Path("runs/growth"),
    seeds: Annotated[
        list[str] | None,
        typer.Option(metavar="N,N", help="seeds of the simulated screens and of training; default: 1,2,3"),
    ] = None,
    store: Store = None,
    set: Changes = None,
) -> None:
    """Shows where accuracy comes from: trains every rung of the growth chart on simulated screens.

    The same command with the same --out resumes.
    """
    from components.core.config import RunConfig
    from pipelines.studies.growth import run_growth

    run_growth(with_store(RunConfig.load(config, set or []), store), seeds or ["1,2,3"], out)


@app.command()
def ablation(
    study: Annotated[
        Path | None, PathOption(help="study file: screens, and rows of changes; default: the shipped one")
    ] = None,
    out: Annotated[Path, PathOption(help="folder of ablation.json and ablation.md")] = Path("runs/ablation"),
    seeds: Annotated[
        list[str] | None,
        typer.Option(metavar="N,N", help="seeds of the simulated screens and of training; default: 1"),
    ] = None,
    screens: Annotated[
        list[str] | None, typer.Option(metavar="NAME,NAME", help="screens of the study; default: all with folders")
    ] = None,
    rows: Annotated[list[str] | None, typer.Option(metavar="NAME,NAME", help="rows of the study; default: all")] = None,
    path: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="folder that {NAME} stands for in the study file")
    ] = None,
    store: Store = None,
    set: Changes = None,
) -> None:
    """Compares changes of a configuration by accuracy and cost, on several kinds of screen.

    The same command with the same --out resumes; other screens, rows and seeds are added to its table.
    """
    from pipelines.studies.ablation import SHIPPED, read_study, run_ablation

    file = study or SHIPPED
    found = read_study(file, path or [], screens or [], rows or [])
    run_ablation(file, found, seeds or ["1"], set or [], store, out)


@app.command()
def protocols(
    config: Config,
    screen: SimulatedScreen = None,
    protocol: Annotated[
        ProtocolChoice, typer.Option(help="batch: hold out whole experiments; random: hold out random wells; or both")
    ] = ProtocolChoice.BOTH,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="number of random splits per protocol")] = 3,
    backbones: Annotated[int, typer.Option(metavar="N", help="number of configured backbones in the ensemble")] = 1,
    out: Annotated[Path | None, PathOption(help="folder of protocols.json; default: runs/NAME-protocols")] = None,
    store: Store = None,
    set: Changes = None,
) -> None:
    """Scores networks by the challenge organisers' two protocols: whole experiments held out, or random wells.

    Supervised training only, without plate groups; nothing is selected on the scored wells. The same command with the same
    --out resumes.
    """
    from components.core.config import RunConfig
    from pipelines.studies.protocols import ORGANISERS, run_protocols

    settings = with_store(RunConfig.load(config, set or []), store)
    protocols = [name for name in ORGANISERS if protocol in (name, ProtocolChoice.BOTH)]
    run_protocols(settings, screen, protocols, repeats, backbones, out or Path("runs") / f"{settings.name}-protocols")


@app.command()
def plan(
    config: Config,
    screen: Annotated[
        Path | None, PathOption(help="directory of a screen, whose tables are read; default: the sizes under simulate")
    ] = None,
    gpus: Annotated[
        list[str] | None, typer.Option(metavar="N,N", help="numbers of GPUs, for example 1,4,8; default: common ones")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU type: l4, a10, l40s, a100-80gb, h100, h200, or your own")] = None,
    throughput: Annotated[
        Path | None, PathOption(help="YAML with your rates, pod times and prices, instead of the shipped examples")
    ] = None,
    measured: Annotated[
        Path | None, PathOption(help="folder of a finished run, whose durations correct the plan")
    ] = None,
    json: Json = False,
    set: Changes = None,
) -> None:
    """Estimates a run's pods, GPU-hours, hours on N GPUs, storage and cost. Starts nothing.

    Rates were measured on an H200 and are scaled to other GPUs, unless you give your own; every line shows its basis.
    """
    from components.core.config import RunConfig
    from pipelines.plan.output import run_plan

    run_plan(
        RunConfig.load(config, set or []), screen, gpus or [], gpu, throughput, measured, json, console_of_terminal()
    )


@app.command(name="compile")
def compile_(
    config: Config,
    out: Annotated[Path, PathOption(help="YAML file to write; its folder must exist")] = Path("pipeline.yaml"),
    images: Images = "images.json",
    set: Changes = None,
) -> None:
    """Compiles the training DAG for Kubeflow Pipelines, with image digests, and resources and secrets of every step.

    Pipeline parameters: source (s3:// address of the screen), fingerprint (change it when the screen's files change) and truth
    (s3:// address of labels, or empty). The same configuration, code and images compile to the same bytes.
    """
    from components.core.config import RunConfig
    from pipelines.cluster.compile import run_compile

    run_compile(RunConfig.load(config, set or []), out, images, console_of_terminal())


@app.command()
def submit(
    config: Config,
    endpoint: Endpoint,
    screen: BucketScreen = None,
    truth: TruthAddress = None,
    images: Images = "images.json",
    wait: Wait = False,
    resubmit: Resubmit = None,
    timeout: Timeout = None,
    out: Annotated[Path | None, PathOption(help="with --wait: folder of the results; default: runs/KEY")] = None,
    set: Changes = None,
) -> None:
    """Submits the training DAG to Kubeflow Pipelines. If a run of the same content is in progress, it is followed instead.

    The login comes from the environment: KFP_TOKEN, KFP_TOKEN_FILE or KFP_COOKIE; in a pod, its service account's token.
    KFP_CA_CERT is a file of trusted certificates. The screen is listed with the credentials in the AWS variables.

    Exit codes: 0 done, 2 bad input, 3 the run failed or was cancelled, 5 contact was lost or the deadline passed: the run may
    continue.
    """
    from components.core.config import RunConfig
    from pipelines.cluster.submit import SubmitRequest
    from pipelines.cluster.submit import submit as submit_run

    request = SubmitRequest(endpoint, screen, truth, images, out, wait, resubmit, timeout_seconds(timeout))
    submit_run(RunConfig.load(config, set or []), request, console_of_terminal())


@app.command(name="check-screen")
def check_screen(
    screen: Annotated[
        str,
        typer.Argument(parser=path_or_address, metavar="SCREEN", help="the screen: a folder, or s3://BUCKET/PREFIX"),
    ],
    config: OptionalConfig = None,
    write_config: Annotated[Path | None, PathOption(help="file for a configuration to start from")] = None,
    json: Json = False,
    set: Changes = None,
) -> None:
    """Checks a screen before a run: everything wrong or doubtful at once, a summary, and a configuration to start from.

    Exits with 2 if a run would refuse the screen.
    """
    from components.core.config import RunConfig
    from pipelines.check_screen import run_check_screen

    if set and config is None:
        settings: RunConfig | None = RunConfig().changed(set, "--set")
    else:
        settings = RunConfig.load(config, set or []) if config else None
    console = console_of_terminal(json)
    whole = config is not None
    raise typer.Exit(run_check_screen(screen, settings, write_config, console, whole=whole, as_json=json))


@app.command()
def doctor(
    config: OptionalConfig = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Kubeflow Pipelines to check as well", envvar="KF_PIPELINES_ENDPOINT")
    ] = None,
    images: Annotated[
        Path | None, PathOption(help="file written by `images push`; default: images.json, if it exists")
    ] = None,
    store: Store = None,
    json: Json = False,
    set: Changes = None,
) -> None:
    """Checks what a run needs, on this machine or in a container: one line each, ok or what to do.

    Object store, images, Kubeflow Pipelines, GPU, versions, disk space. Exits with 2 if a required check fails.
    """
    from components.core.config import RunConfig
    from pipelines.doctor import run_doctor

    if set and config is None:
        raise InputError("--set changes a configuration; give --config as well")
    settings = RunConfig.load(config, set or []) if config else RunConfig()
    settings, console = with_store(settings, store), console_of_terminal()
    raise typer.Exit(run_doctor(settings, endpoint, images, console, trains=config is not None, as_json=json))


@app.command()
def jobs(
    config: Config,
    screen: Annotated[
        str | None, AddressOption(help="s3://BUCKET/PREFIX of the screen; default: the first Job simulates one")
    ] = None,
    out: Annotated[Path, PathOption(help="folder for the YAML files, one per step")] = Path("jobs"),
    images: Images = "images.json",
    set: Changes = None,
) -> None:
    """Writes a plain Kubernetes Job for each step, to debug a step on a cluster without Kubeflow.

    The Jobs write under by-hand/NAME in the configuration's bucket, and each reads what those before it wrote.
    """
    from components.core.config import RunConfig
    from pipelines.cluster.checks import check_addresses, check_cluster, on_cluster
    from pipelines.cluster.compile import images_of
    from pipelines.cluster.jobs import step_jobs, write_jobs
    from pipelines.dag import training_graph

    settings = on_cluster(RunConfig.load(config, set or []))
    check_cluster(settings, training_graph(settings))
    check_addresses(screen, None)
    manifests = step_jobs(settings, images_of(images).references, screen)
    write_jobs(manifests, out)
    typer.echo(f"{out}: {', '.join(manifests)}")


def main() -> None:
    """Runs the command line."""
    cancel_on_signals(RESUME)
    run_app(app)


if __name__ == "__main__":
    main()
