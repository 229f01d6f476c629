"""A training or a prediction on this machine: kfp.local, tasks as processes or containers. Imports neither torch nor kfp.

The command (`run_here`, `predict_here`) starts this module as the process in which kfp.local runs the pipeline (`main`), shows
its events and collects its results. One pipeline per process: kfp.local leaves a patched `print` behind after every ParallelFor,
so that a second one would log everything twice. Everything that tables and the registry can refuse is refused before a folder is
made.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from components.core.config import RunConfig, parse, result_config
from components.core.errors import InputError, StepError
from components.core.learning.network_size import network_sizes
from components.core.learning.step_settings import library_versions
from components.core.processes import end_with_parent
from components.core.progress import EVENTS_VARIABLE, finished_tasks
from components.core.storage.digests import code_digest, digest_file, digest_text
from components.core.storage.object_store import ObjectStore
from components.core.storage.opening import choose_store, open_existing, whole_address
from components.core.storage.run_records import RUNS
from pipelines.checks import check_input, check_start, local_files, screen_source, weights_remarks
from pipelines.dag import OUTPUTS, training_graph
from pipelines.images.code_version import code_version
from pipelines.options import print_line
from pipelines.run import RESUME
from pipelines.run.containers import check_credentials, check_images, containers_removed
from pipelines.run.display import TaskDisplay, event_name
from pipelines.run.folder import LocalRun, RunFolder, collect_results, opened_folder
from pipelines.run.predict_request import CheckedPrediction, PredictParams, PredictRequest, check_prediction

STOP_SECONDS = 10.0
POLL_SECONDS = 0.2


def run_here(
    config: RunConfig,
    out: Path,
    screen: str | None,
    truth: Path | None,
    console: Console,
    *,
    containers: bool = False,
) -> None:
    """Runs the training DAG on this machine, as processes or containers; a run of the same configuration in `out` is resumed.

    `screen` is a directory or an address in a bucket; None simulates one first. `truth` are labels of the unlabelled wells, for the
    report's scoring alone.

    Raises:
        InputError: bad input, found here or by a step.
        StepError: a step failed; finished steps are kept.
    """
    check_input(config, screen, truth)
    if not containers and any(backbone.kind == "timm" for backbone in config.backbones):
        network_sizes(config)  # a model that timm does not have is found before plates are packed
    # The store first: wrong credentials or a missing bucket must not leave a folder behind.
    store = ObjectStore(config.store.address)
    store.check()
    check_start(config)
    for remark in weights_remarks(config):
        print_line(console, f"warning: {remark}", "yellow")
    _run(_prepared(config, screen, truth, out, containers), store, out, console)


def predict_here(
    request: PredictRequest,
    screen: str,
    out: Path,
    truth: Path | None,
    store: str | None,
    console: Console,
    *,
    containers: bool = False,
) -> None:
    """Predicts new plates on this machine, as processes or containers; the same prediction in `out` is resumed.

    `screen` is a directory or an address in a bucket; `truth` are labels of its treatment wells, for the report's scoring alone;
    `store` is the value of --store, None for the model's own store.

    Raises:
        InputError: bad input, found here or by a step; then nothing stays in `out`.
        StepError: a step failed; finished steps are kept.
    """
    chosen = choose_store(request.store(), store)
    source = screen_source(screen)
    source.check()
    own = open_existing(chosen.address)
    checked = check_prediction(request, chosen, own, source, truth)
    _run(_prepared(checked.config, screen, truth, out, containers, checked), own, out, console)


def _prepared(
    config: RunConfig,
    screen: str | None,
    truth: Path | None,
    out: Path,
    containers: bool,
    prediction: CheckedPrediction | None = None,
) -> LocalRun:
    """The run, with its key and lineage; InputError if containers cannot be started."""
    if containers:
        check_credentials(config.store)
    images = check_images() if containers else {}
    screen = whole_address(screen) if screen else None
    source, params = RunFolder(out).source(screen), prediction.params if prediction else None
    lineage: dict[str, Any] = {
        "run": run_key(config, source, out, params),
        "code_version": code_version(),
        "image_digests": {**images},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "screen": source,
        **({"model": {**prediction.model_info}} if prediction else {"seeds": {"run": config.seed}}),
    }
    return LocalRun(
        config=config,
        screen=screen,
        truth=truth.resolve() if truth else None,
        lineage=lineage,
        prediction=params,
        folds={**prediction.folds} if prediction else {},
        containers=containers,
    )


def _run(run: LocalRun, store: ObjectStore, out: Path, console: Console) -> None:
    """Runs the pipeline, after simulating the screen if there is none, each in a process."""
    with contextlib.ExitStack() as held:
        folder = held.enter_context(opened_folder(out, run))
        if run.prediction:
            held.enter_context(_unrecorded_if_refused(store, run.lineage["run"]))
        folder.events.unlink(missing_ok=True)
        folder.events.touch()
        shutil.rmtree(folder.artifacts, ignore_errors=True)
        held.enter_context(_empty(folder.tmp))
        if run.containers:
            held.enter_context(containers_removed(folder.work))
        counts = {**({"simulate": 1} if run.screen is None else {}), **run.graph.counts()}
        display = held.enter_context(TaskDisplay(run.config, counts, console))
        log = held.enter_context(folder.log.open("ab"))
        events = held.enter_context(folder.events.open(encoding="utf-8", errors="replace"))
        environment = _environment(run.config, folder)
        if run.screen is None:
            command = ["-m", "components.simulate", "--config", str(folder.config), "--out", str(folder.simulated)]
            follow(command, environment, events, display, log)
        try:
            follow(["-m", "pipelines.run.local", str(folder.out), str(os.getpid())], environment, events, display, log)
        except StepError as error:
            hint = "" if run.prediction else finish_hint(run.config, folder)
            raise StepError(f"{error}{hint}") from None
        collect_results(folder)


def finish_hint(config: RunConfig, folder: RunFolder) -> str:
    """How to end a failed training from the folds that every cell type has; empty if there is none."""
    (last,) = {task.step for task in training_graph(config).tasks if "logits" in OUTPUTS[task.step]}
    done = {(task.get("cell_type"), task.get("fold")) for task in finished_tasks(folder.events) if task["step"] == last}
    common = min(sum(of == cell_type for of, _ in done) for cell_type in config.screen.cell_types)
    if not common or common == len(config.folds.trained):
        return ""  # no fold is missing
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


def run_key(config: RunConfig, source: str, out: Path, prediction: PredictParams | None = None) -> str:
    """A run's key in the object store: the same as long as a folder's run would compute the same.

    Files that the configuration names count by content, those in an object store by address. `out` and the machine's name
    distinguish the runs of a shared store.
    """
    content = [
        result_config(config),
        source,
        platform.node(),
        str(out.resolve()),
        code_digest("components", "pipelines"),
        library_versions(),
        *(digest_file(file) for file in local_files(config).values()),
        *([prediction.model_dump()] if prediction else []),
    ]
    return f"{config.name}-{digest_text(json.dumps(content))[:12]}"


def follow(
    arguments: list[str], environment: Mapping[str, str], events: TextIO, display: TaskDisplay, log: Any
) -> None:
    """Runs a Python process in a session of its own, and shows what it and its tasks append to the events file.

    Raises:
        InputError: a task found bad input.
        StepError: a task failed.
    """
    failed: list[dict[str, Any]] = []
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while True:
            ended = process.poll() is not None
            failed += [event for event in display.read(events) if event["event"] == "failed"]
            if ended:
                break
            time.sleep(POLL_SECONDS)
    finally:
        _end_session(process)
    if process.returncode == 0 and not failed:
        return
    log.flush()
    for event in failed:
        if event["kind"] == "input":
            raise InputError(event["message"])
    details = f"(details in {log.name}); {RESUME}"
    for event in failed:
        raise StepError(f"{event_name(event)} failed: {event['message']} {details}")
    silent = " or ".join(task.name for task in display.running.values())
    if silent:
        raise StepError(f"{silent} was killed, perhaps for lack of memory {details}")
    raise StepError(f"the run ended with code {process.returncode} {details}")


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all it started: SIGTERM to its group, SIGKILL after a while."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            break
    process.wait()


def main(out: Path, parent: int) -> int:
    """Runs the pipeline of the run in a folder, but not without the parent process; returns the exit code."""
    folder = RunFolder(out)
    run = parse(LocalRun, json.loads(folder.run.read_text(encoding="utf-8")), source=str(folder.run))
    end_with_parent(parent, end=lambda: _end_tasks(run, folder))
    from kfp import local

    from pipelines.kfp_pipeline import local_pipeline

    # kfp warns of every image whose name lacks the word python, though a subprocess needs no image.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    runner: local.SubprocessRunner | local.DockerRunner = local.SubprocessRunner(use_venv=False)
    if run.containers:
        from pipelines.run.containers import docker_runner

        runner = docker_runner(run, folder)
    local.init(runner=runner, pipeline_root=str(folder.artifacts), enable_caching=False)
    arguments = run.prediction.parameters() if run.prediction else {}
    arguments |= {"source": folder.source(run.screen), "fingerprint": "", "truth": str(folder.truth(run) or "")}
    try:
        local_pipeline(run.config, run.graph, run.containers)(**arguments, lineage=json.dumps(run.lineage))
    except RuntimeError as error:
        print(f"pipeline failed: {error}", file=sys.stderr)  # noqa: T201
        return 3
    return 0


def _end_tasks(run: LocalRun, folder: RunFolder) -> None:
    if run.containers:
        from pipelines.images.engine import connect
        from pipelines.run.containers import remove_containers

        # Containers are children of the engine; the signal to this process group does not reach them.
        with contextlib.suppress(InputError):
            remove_containers(connect(), folder.work)
    os.killpg(os.getpgid(0), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
