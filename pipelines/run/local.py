"""A training or a prediction on this machine: kfp.local, tasks as processes or containers. Imports neither torch nor kfp.

The pipeline runs in a process of its own (pipelines.run.worker); this one shows its events and collects its results.
Everything that tables and the registry can refuse is refused before a folder is made.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig, result_config
from components.core.errors import InputError, StepError
from components.core.files import write_atomically
from components.core.learning.step_settings import library_versions
from components.core.progress import EVENTS_VARIABLE, finished_tasks
from components.core.storage.digests import code_digest, digest_file, digest_text
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import choose_store, open_existing, open_store, whole_address
from components.core.storage.run_records import RUNS
from pipelines.checks import check_input, check_start, local_files, screen_source
from pipelines.dag import OUTPUTS, TaskGraph, prediction_graph, training_graph
from pipelines.images.code_version import code_version
from pipelines.run.containers import check_credentials, check_images, container_settings, containers_removed
from pipelines.run.display import TaskDisplay
from pipelines.run.folder import RunFolder, collect_results, opened_folder
from pipelines.run.predict_request import CheckedPrediction, PredictRequest, check_prediction
from pipelines.run.worker import follow


@dataclass(frozen=True)
class LocalRun:
    """A run whose input has been checked.

    Attributes:
        config: its configuration.
        graph: its DAG.
        screen: directory of the screen or the new plates, or their address in a bucket; None to simulate a screen first.
        truth: labels of unlabelled or new wells, for the report's scoring alone.
        prediction: what a prediction of new plates is; None for a training.
    """

    config: RunConfig
    graph: TaskGraph
    screen: str | None
    truth: Path | None
    prediction: CheckedPrediction | None = None


def run_here(
    config: RunConfig,
    out: Path,
    screen: str | None,
    truth: Path | None,
    console: Console,
    *,
    containers: bool = False,
) -> Path:
    """Runs the training DAG on this machine.

    Args:
        config: the run's configuration.
        out: folder of the results; a run of the same configuration in it is resumed.
        screen: directory of a screen, or its address in a bucket; None simulates one first.
        truth: labels of the unlabelled wells, for the report's scoring alone.
        console: where progress is shown.
        containers: whether each task is a container of its step's image.

    Returns:
        The folder of the results.

    Raises:
        InputError: bad input, found here or by a step.
        StepError: a step failed; finished steps are kept.
    """
    check_input(config, screen, truth)
    # The store first: wrong credentials or a missing bucket must not leave a folder behind.
    store = open_store(config.store.bucket, config.store.prefix)
    store.check()
    check_start(config)
    return _run(LocalRun(config, training_graph(config), screen, truth), store, out, console, containers)


def predict_here(
    request: PredictRequest,
    screen: str,
    out: Path,
    truth: Path | None,
    store: str | None,
    console: Console,
    *,
    containers: bool = False,
) -> Path:
    """Predicts new plates on this machine.

    Args:
        request: the prediction.
        screen: directory of the new plates, or their address in a bucket.
        out: folder of the results; the same prediction in it is resumed.
        truth: labels of their treatment wells, for the report's scoring alone.
        store: value of --store; None for the model's own store.
        console: where progress is shown.
        containers: whether each task is a container of its step's image.

    Returns:
        The folder of the results.

    Raises:
        InputError: bad input, found here or by a step; then nothing stays in `out`.
        StepError: a step failed; finished steps are kept.
    """
    chosen = choose_store(request.store(), store)
    source = screen_source(screen)
    source.check()
    own = open_existing(chosen.bucket, chosen.prefix)
    checked = check_prediction(request, chosen, own, source, truth, f"--screen {screen}")
    graph = prediction_graph(checked.folds)
    return _run(LocalRun(checked.config, graph, screen, truth, checked), own, out, console, containers)


def _run(run: LocalRun, store: ObjectStore, out: Path, console: Console, containers: bool) -> Path:
    """Runs a pipeline whose input has been checked; returns the folder of the results."""
    config, prediction = run.config, run.prediction
    params = prediction.params.plain() if prediction else None
    if containers:
        check_credentials(config.store)
    images = check_images() if containers else {}
    with contextlib.ExitStack() as held:
        folder = held.enter_context(opened_folder(out, config, run.screen, run.truth, params))
        source = whole_address(run.screen) if run.screen else str(folder.simulated / "screen")
        truth = run.truth.resolve() if run.truth else folder.simulated / "truth.csv" if run.screen is None else None
        lineage: dict[str, Any] = {
            "run": run_key(config, source, out, params),
            "code_version": code_version(),
            "image_digests": dict(images),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "screen": source,
            **({"model": dict(prediction.model_info)} if prediction else {"seeds": {"run": config.seed}}),
        }
        if prediction:
            held.enter_context(_unrecorded_if_refused(store, str(lineage["run"])))
        folder.events.unlink(missing_ok=True)
        folder.events.touch()
        shutil.rmtree(folder.artifacts, ignore_errors=True)
        held.enter_context(_empty(folder.tmp))
        environment = _environment(config, folder)
        settings = None
        if containers:
            held.enter_context(containers_removed(folder.work))
            models = [prediction.params.model] if prediction else []
            settings = container_settings(config, folder.work, folder.tmp, source, truth, environment, models)
        job = {
            "config": json.loads(config.model_dump_json()),
            "prediction": {"folds": dict(prediction.folds), "parameters": prediction.params.parameters()}
            if prediction
            else None,
            "pipeline_root": str(folder.artifacts),
            "source": source,
            "truth": str(truth or ""),
            "lineage": lineage,
            "containers": settings,
        }
        write_atomically(folder.job, json.dumps(job))
        _follow_processes(run, folder, environment, console)
        collect_results(folder)
    return out


def _follow_processes(run: LocalRun, folder: RunFolder, environment: Mapping[str, str], console: Console) -> None:
    """Simulates the screen if there is none, then runs the pipeline; each is a process of its own."""
    counts = {**({"simulate": 1} if run.screen is None else {}), **run.graph.counts()}
    with (
        TaskDisplay(run.config, counts, console) as display,
        folder.log.open("ab") as log,
        folder.events.open(encoding="utf-8", errors="replace") as events,
    ):
        if run.screen is None:
            command = ["-m", "components.simulate", "--config", str(folder.work / "config.yaml")]
            follow([*command, "--out", str(folder.simulated)], environment, events, display, log)
        try:
            follow(["-m", "pipelines.run.worker", str(folder.job)], environment, events, display, log)
        except StepError as error:
            hint = "" if run.prediction else finish_hint(run.config, folder)
            raise StepError(f"{error}{hint}") from None


def finish_hint(config: RunConfig, folder: RunFolder) -> str:
    """How to end a failed training from the folds that every cell type has; empty if there is none."""
    (last,) = {task.step for task in training_graph(config).tasks if "logits" in OUTPUTS[task.step]}
    done = {(task.get("cell_type"), task.get("fold")) for task in finished_tasks(folder.events) if task["step"] == last}
    common = min(sum(of == cell_type for of, _ in done) for cell_type in config.screen.cell_types)
    if not common or common == len(config.folds.trained):
        return ""  # with every fold there, none is to be left out
    return (
        f"; or end it without the other folds: cellsignal finish --run {shlex.quote(str(folder.out))} --quorum {common}"
    )


def _environment(config: RunConfig, folder: RunFolder) -> dict[str, str]:
    """Variables of the process that runs a pipeline, and of its tasks."""
    threads = config.local.threads or max(1, (os.cpu_count() or 1) // config.local.parallel_folds)
    return {
        **os.environ,
        EVENTS_VARIABLE: str(folder.events),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        # A folder `docker` or `kfp` beside the user must not be taken for the package of that name.
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(folder.tmp),  # kfp.local leaves its temporary folders behind
    }


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[None]:
    """An empty folder, cleared of files that killed tasks left; removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _unrecorded_if_refused(store: ObjectStore, key: str) -> Iterator[None]:
    """Removes the record of a refused prediction from the store, unless one was there before."""
    known = store.exists(f"{RUNS}/{key}/run.json")
    try:
        yield
    except InputError:
        if not known:
            store.delete_prefix(f"{RUNS}/{key}/")
        raise


def run_key(config: RunConfig, source: str, out: Path, prediction: Mapping[str, Any] | None = None) -> str:
    """A run's key in the object store: the same as long as a folder's run would compute the same.

    Files that the configuration names count by content, those in an object store by address.

    Args:
        config: the run's configuration.
        source: address of the screen.
        out: folder of the results; with the machine's name it distinguishes the runs of a shared store.
        prediction: parameters of a prediction; None for a training.
    """
    content = [
        result_config(config),
        source,
        platform.node(),
        str(out.resolve()),
        code_digest("components", "pipelines"),
        library_versions(),
        *(digest_file(file) for file in local_files(config).values()),
        *([dict(prediction)] if prediction else []),
    ]
    return f"{config.name}-{digest_text(json.dumps(content))[:12]}"
