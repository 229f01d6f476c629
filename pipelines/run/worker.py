"""The process in which kfp.local runs one pipeline: `follow` starts and watches it, `main` is the process. Never imports torch.

One pipeline per process: kfp.local leaves a patched `print` behind after every ParallelFor, so that a second pipeline in
the same process would log everything twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from components.core.config import RunConfig, parse
from components.core.errors import InputError, StepError
from components.core.processes import end_with_parent
from pipelines.dag import prediction_graph, training_graph
from pipelines.run.display import TaskDisplay, event_name

STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
RESUME = "run the same command again to resume from the finished steps"


def follow(
    arguments: list[str], environment: Mapping[str, str], events: TextIO, display: TaskDisplay, log: Any
) -> None:
    """Runs a Python process in a session of its own, shows its events, and explains its failure.

    Args:
        arguments: the interpreter's arguments.
        environment: all variables of the process.
        events: the events file, which the process and its tasks append to.
        display: shows the events.
        log: gets what the process prints.

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


def main(job: Path) -> int:
    """Runs the pipeline that a job file describes, of a training run or a prediction; returns the process's exit code."""
    what = json.loads(job.read_text(encoding="utf-8"))
    end_with_parent(end=lambda: _end_tasks(what))
    from kfp import local

    # kfp warns of every image whose name lacks the word python, though a subprocess needs no image.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"kfp\.local")
    config = parse(RunConfig, what["config"], source=str(job))
    runner: local.SubprocessRunner | local.DockerRunner = local.SubprocessRunner(use_venv=False)
    if what["containers"]:
        from pipelines.run.containers import docker_runner

        runner = docker_runner(what["containers"])
    local.init(runner=runner, pipeline_root=what["pipeline_root"], enable_caching=False)
    try:
        _run_pipeline(what, config)
    except RuntimeError as error:
        print(f"pipeline failed: {error}", file=sys.stderr)  # noqa: T201
        return 3
    return 0


def _run_pipeline(what: dict[str, Any], config: RunConfig) -> None:
    from pipelines.kfp_pipeline import local_pipeline

    arguments = {"source": what["source"], "fingerprint": "", "truth": what["truth"]}
    arguments["lineage"] = json.dumps(what["lineage"])
    prediction = what["prediction"]
    if prediction is None:
        local_pipeline(config, training_graph(config))(**arguments)
    else:
        graph = prediction_graph(prediction["folds"])
        local_pipeline(config, graph, predicts=True)(**arguments, **prediction["parameters"])


def _end_tasks(what: dict[str, Any]) -> None:
    if what["containers"]:
        from pipelines.images.engine import connect
        from pipelines.run.containers import remove_containers

        # Containers are children of the engine; the signal to this process group does not reach them.
        with contextlib.suppress(InputError):
            remove_containers(connect(), what["containers"]["work"])
    os.killpg(os.getpgid(0), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
