"""A run on this machine: kfp.local, tasks as processes or containers.

The pipeline runs in a process of its own (pipelines.run.worker); this one follows its events, shows them, and puts the
results in place. Imports neither torch nor kfp.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from components.core.config import NO_EFFECT_ON_RESULTS, RunConfig, first_difference, result_config
from components.core.errors import InputError, StepError
from components.core.files import atomic_directory, locked, write_atomically
from components.core.learning.step_settings import library_versions
from components.core.progress import EVENTS_VARIABLE, finished_tasks
from components.core.storage.digests import code_digest, digest_file, digest_text
from components.core.storage.opening import open_store, whole_address
from pipelines.checks import check_input, check_start, local_files
from pipelines.dag import OUTPUTS, training_graph
from pipelines.images.code_version import code_version
from pipelines.run.containers.engine_side import check_images, ended_containers
from pipelines.run.containers.mounts import check_credentials
from pipelines.run.containers.settings import container_settings, scratch
from pipelines.run.display import TaskDisplay, event_name

RESULTS = (
    "predictions.csv",
    "predictions_oof.csv",
    "predictions_holdout.csv",
    "metrics.json",
    "report.html",
    "config.yaml",
    "lineage.json",
)
EMBEDDINGS = "embeddings"
JOB = "job.json"
STOP_SECONDS = 10.0


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
        config: the run.
        out: folder of the results; one that holds a run of the same configuration goes on with it.
        screen: directory of a screen, or its address in a bucket; None simulates one first.
        truth: labels of the unlabelled wells, for the report's scoring alone.
        console: where progress is shown.
        containers: whether each task is a container of its step's image.

    Returns:
        The folder of the results.

    Raises:
        InputError: bad input, wherever it was found.
        StepError: a step failed; finished steps are kept.
    """
    check_input(config, screen, truth)
    if containers:
        check_credentials(config.store)
    images = check_images() if containers else {}
    # The store first: wrong credentials or a missing bucket must not leave a folder behind.
    open_store(config.store.bucket, config.store.prefix).check()
    check_start(config)
    with contextlib.ExitStack() as held:
        work = held.enter_context(opened_folder(out, config, screen, truth))
        events = work / "events.jsonl"
        events.unlink(missing_ok=True)
        events.touch()
        environment = task_environment(config, events)
        simulate = screen is None
        source = str(work / "simulated" / "screen") if screen is None else whole_address(screen)
        given = truth.resolve() if truth else None
        known_truth = work / "simulated" / "truth.csv" if simulate else given
        how = None
        if containers:
            held.enter_context(ended_containers(work))
            held.enter_context(scratch(work))
            how = container_settings(config, work, source, known_truth, environment)
        job = _write_job(work, config, source, known_truth, images, how)
        counts = {**({"simulate": 1} if simulate else {}), **training_graph(config).counts()}
        with (
            TaskDisplay(config, counts, console) as display,
            (work / "log.txt").open("ab") as log,
            events.open(encoding="utf-8") as told,
        ):
            if simulate:
                command = ["-m", "components.simulate", "--config", str(work / "config.yaml")]
                follow([*command, "--out", str(work / "simulated")], environment, told, display, log)
            try:
                follow(["-m", "pipelines.run.worker", str(job)], environment, told, display, log)
            except StepError as error:
                raise StepError(f"{error}{without_the_rest(config, events, out)}") from None
        collect(work, out, events)
    return out


def task_environment(config: RunConfig, events: Path) -> dict[str, str]:
    """Variables of the process that runs a pipeline, and of its tasks.

    Args:
        config: the run.
        events: file that tasks tell of their progress in.
    """
    threads = config.local.threads or max(1, (os.cpu_count() or 1) // config.local.parallel_folds)
    return {
        **os.environ,
        EVENTS_VARIABLE: str(events),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        # A folder `docker` or `kfp` beside the user must not be taken for the package of that name.
        "PYTHONSAFEPATH": "1",
    }


@contextlib.contextmanager
def opened_folder(
    out: Path,
    config: RunConfig,
    screen: str | None,
    truth: Path | None,
    more: Mapping[str, Any] | None = None,
    keep: bool = True,
) -> Iterator[Path]:
    """The run's working folder inside `out`, this process alone in it; refuses a folder of something else.

    Args:
        out: folder of the results.
        config: the run.
        screen: its screen; None where one is simulated.
        truth: its labels.
        more: what else makes it another run.
        keep: whether finished tasks are kept where a later one finds bad input; else that leaves nothing, too.
    """
    described = {
        "config": json.loads(config.model_dump_json()),
        "screen": whole_address(screen) if screen else None,
        "truth": str(truth.resolve()) if truth else None,
        **(more or {}),
    }
    # kfp.local replaces this word in every argument of a task by the interpreter's path.
    for path in (str(out.resolve()), described["screen"] or "", described["truth"] or ""):
        if "python3" in path:
            raise InputError(f"{path}: kfp.local cannot take a path with 'python3' in it; use another folder name")
    work = (out / "run").resolve()
    with contextlib.ExitStack() as held:
        try:
            if out.exists() and not work.is_dir() and any(out.iterdir()):
                raise InputError(f"--out {out}: not empty, and not a run; use a new folder")
            work.mkdir(parents=True, exist_ok=True)
            held.enter_context(_lock(work / "lock", out))
            _describe(work, out, described)
            (work / "config.yaml").write_text(config.dump(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
        try:
            yield work
        except InputError:
            # Bad input that was found before anything was computed leaves nothing behind.
            if not (_has_finished_tasks(work) if keep else (out / "report.html").exists()):
                shutil.rmtree(work)
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise


def _describe(work: Path, out: Path, described: dict[str, Any]) -> None:
    """Writes down what the folder's run is, or finds that it is another one."""
    path = work / "run.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = first_difference(_result_part(earlier), _result_part(described))
        if changed and _has_finished_tasks(work):
            raise InputError(f"--out {out}: holds a run with another {changed}; use a new folder, or the same settings")
        if changed:
            # Nothing was computed with the earlier settings, which were wrong, so there is nothing to protect.
            shutil.rmtree(work / "simulated", ignore_errors=True)
    write_atomically(path, json.dumps(described, indent=1))


def _result_part(described: dict[str, Any]) -> dict[str, Any]:
    """A description without the sections that may change before a run resumes."""
    kept = {name: section for name, section in described["config"].items() if name not in NO_EFFECT_ON_RESULTS}
    return {**described, "config": kept}


def _has_finished_tasks(work: Path) -> bool:
    """Whether a run in this folder got as far as results of its own: a task of the DAG ended, or a report is there."""
    done = finished_tasks(work / "events.jsonl")
    return (work.parent / "report.html").exists() or any(task["step"] != "simulate" for task in done)


@contextlib.contextmanager
def _lock(path: Path, out: Path) -> Iterator[None]:
    """Keeps a second run out of the same folder."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise InputError(
                f"--out {out}: another run is working in this folder; wait for it or use another"
            ) from None
        yield


def run_key(config: RunConfig, source: str, out: Path, more: Mapping[str, Any] | None = None) -> str:
    """The name of a run in the object store: the same as long as a folder's run would compute the same.

    Files that the configuration names count by content, those in an object store by address.

    Args:
        config: the run.
        source: address of the screen.
        out: folder of the results; with the machine's name it tells apart the runs of a shared store.
        more: what else makes it another run.
    """
    content = [
        result_config(config),
        source,
        platform.node(),
        str(out.resolve()),
        code_digest("components", "pipelines"),
        library_versions(),
        *(digest_file(file) for file in local_files(config).values()),
        *([dict(more)] if more else []),
    ]
    return f"{config.name}-{digest_text(json.dumps(content))[:12]}"


def _write_job(
    work: Path,
    config: RunConfig,
    source: str,
    truth: Path | None,
    images: Mapping[str, str],
    containers: Mapping[str, Any] | None,
) -> Path:
    lineage = {
        "run": run_key(config, source, work.parent),
        "code_version": code_version(),
        "image_digests": dict(images),
        "seeds": {"run": config.seed},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "screen": source,
    }
    pipeline_root = work / "kfp"
    shutil.rmtree(pipeline_root, ignore_errors=True)
    job = work / JOB
    job.write_text(
        json.dumps(
            {
                "config": json.loads(config.model_dump_json()),
                "pipeline_root": str(pipeline_root),
                "source": source,
                "truth": str(truth) if truth else "",
                "lineage": lineage,
                "containers": containers,
            }
        ),
        encoding="utf-8",
    )
    return job


def follow(
    arguments: list[str], environment: Mapping[str, str], events: TextIO, display: TaskDisplay, log: Any
) -> None:
    """Runs a Python process in a session of its own, shows its events, and explains its failure.

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
            for line in events.readlines():
                event = json.loads(line)
                display.event(event)
                if event["event"] == "failed":
                    failed.append(event)
            if ended:
                break
            time.sleep(0.2)
    finally:
        _end(process)
    if process.returncode == 0 and not failed:
        return
    log.flush()
    for event in failed:
        if event["kind"] == "input":
            raise InputError(event["message"])
    for event in failed:
        raise StepError(
            f"{event_name(event)} failed: {event['message']} (details in {log.name}); run the same command "
            "again to go on from the finished steps"
        )
    silent = [task.name for task in display.running.values()]
    if silent:
        raise StepError(
            f"{' or '.join(silent)} was ended from outside, perhaps for lack of memory (details in {log.name}); run the "
            "same command again to go on from the finished steps"
        )
    raise StepError(
        f"the run ended with code {process.returncode} (details in {log.name}); run the same command again to go on "
        "from the finished steps"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all it started: SIGTERM to its group, SIGKILL after a while."""
    for how, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
    process.wait()


def without_the_rest(config: RunConfig, events: Path, out: Path) -> str:
    """How to end a failed run from the folds that every cell type has; empty where there is none."""
    (last,) = {task.step for task in training_graph(config).tasks if "logits" in OUTPUTS[task.step]}
    done = {(task["cell_type"], task["fold"]) for task in finished_tasks(events) if task["step"] == last}
    common = min(sum(of == cell_type for of, _ in done) for cell_type in config.screen.cell_types)
    if not common or common == len(config.folds.trained):
        return ""  # with every fold there, none is to be left out
    return f"; or end it without the other folds: cellsignal finish --run {shlex.quote(str(out))} --quorum {common}"


def collect(work: Path, out: Path, events: Path, names: Sequence[str] = RESULTS, report: str = "report") -> None:
    """Puts the report step's files into the results folder, each whole, and the folds' embeddings beside them.

    lineage.json learns how long each task took, and where the embeddings are.

    Args:
        work: the run's working folder.
        out: the results folder.
        events: of the run.
        names: the report's files.
        report: the report's task, as kfp calls it.
    """
    found = sorted(work.glob(f"kfp/*/{report}/**/results"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise StepError(f"the report step left no results under {work / 'kfp'}")
    try:
        embeddings = _collect_embeddings(work, out)
        for name in names:
            source = found[-1] / name
            if not source.is_file():
                continue
            content = source.read_bytes()
            if name == "lineage.json":
                # The report is itself a task of the run, so only now is every duration known.
                lineage = {**json.loads(content), "steps": finished_tasks(events), "embeddings": embeddings}
                content = f"{json.dumps(lineage, indent=2)}\n".encode()
            write_atomically(out / name, content)
    except OSError as error:
        raise StepError(
            f"{out}: the results cannot be written ({error.strerror}); make room and run the same command again"
        ) from None


def _collect_embeddings(work: Path, out: Path) -> list[str]:
    """Brings the embeddings of all folds and cell types into one folder, whole; returns their files, relative to `out`.

    Each task wrote a part of the same tree: backbone, cell type, fold.
    """
    files = {
        file.relative_to(folder).as_posix(): file
        for folder in sorted(work.glob(f"kfp/*/*/**/{EMBEDDINGS}"))
        if EMBEDDINGS not in folder.relative_to(work).parts[:-1]  # a backbone may have any name
        for file in folder.rglob("*.parquet")
    }
    if not files:
        return []
    with atomic_directory(out / EMBEDDINGS) as making:
        for name, file in files.items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, making / name)
    return [f"{EMBEDDINGS}/{name}" for name in sorted(files)]


def read_metrics(out: Path) -> dict[str, Any]:
    """The metrics.json of a finished run."""
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics
